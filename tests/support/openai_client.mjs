// OpenAI's JavaScript client for tests/engine/test_api.py: calls each endpoint, prints the answers as JSON.
import OpenAI from "openai";

const [baseURL, apiKey, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: question }];
const answers = { model };

answers.chat = (await client.chat.completions.create({ model, messages, temperature: 0 })).choices[0].message.content;

answers.streamed = "";
for await (const chunk of await client.chat.completions.create({ model, messages, temperature: 0, stream: true })) {
  answers.streamed += chunk.choices[0]?.delta?.content ?? "";
}

answers.response = (await client.responses.create({ model, input: question, temperature: 0 })).output_text;
answers.completion = (
  await client.completions.create({ model, prompt: "This Space", temperature: 0, max_tokens: 8 })
).choices[0].text;

const failure = async (call) => {
  try {
    await call;
    return "none";
  } catch (error) {
    return `${error.constructor.name}: ${error.message}`;
  }
};
answers.tooMany = await failure(client.chat.completions.create({ model, messages, max_tokens: 5000 }));
answers.embeddings = await failure(client.embeddings.create({ model, input: "x" }));
answers.wrongKey = await failure(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list());

console.log(JSON.stringify(answers));
