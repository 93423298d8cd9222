// Anthropic's client for Node.
// packages: npm:@anthropic-ai/sdk@1.14.0
// checks: list chat stream tools wrong_key too_long
import Anthropic from "@anthropic-ai/sdk";

const { URL, KEY, MODEL, PROMPT } = process.env;

// settings
const client = new Anthropic({ baseURL: URL, apiKey: KEY });
// end
const request = { model: MODEL, max_tokens: 200, messages: [{ role: "user", content: PROMPT }] };
const weather = {
  name: "weather",
  input_schema: { type: "object", properties: { city: { type: "string" } } },
};

const checks = {
  async list() {
    console.log((await client.models.list()).data[0].id);
  },
  async chat() {
    console.log((await client.messages.create(request)).content[0].text);
  },
  async stream() {
    await client.messages
      .stream(request)
      .on("text", (text) => process.stdout.write(text))
      .finalMessage();
  },
  async tools() {
    console.log((await client.messages.create({ ...request, tools: [weather] })).content[0]);
  },
};

await checks[process.argv[2]]();
