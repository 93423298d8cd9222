// OpenAI's client for Node.
// packages: npm:openai@7.57.0
// checks: list chat stream tools responses wrong_key too_long
import OpenAI from "openai";

const { URL, KEY, MODEL, PROMPT } = process.env;

// settings
const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY });
// end
const messages = [{ role: "user", content: PROMPT }];
const weather = {
  name: "weather",
  parameters: { type: "object", properties: { city: { type: "string" } } },
};

const checks = {
  async list() {
    console.log((await client.models.list()).data[0].id);
  },
  async chat() {
    const answer = await client.chat.completions.create({ model: MODEL, messages });
    console.log(answer.choices[0].message.content);
  },
  async stream() {
    const chunks = await client.chat.completions.create({ model: MODEL, messages, stream: true });
    for await (const chunk of chunks) process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  },
  async tools() {
    const tools = [{ type: "function", function: weather }];
    const answer = await client.chat.completions.create({ model: MODEL, messages, tools });
    console.log(answer.choices[0].message.tool_calls[0].function);
  },
  async responses() {
    console.log((await client.responses.create({ model: MODEL, input: PROMPT })).output_text);
  },
};

await checks[process.argv[2]]();
