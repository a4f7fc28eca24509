// Node's clients, unchanged, at the versions of package.json. Prints one line of JSON: what each of them got.
import OpenAI from "openai";
import { generateObject, generateText, jsonSchema, streamText } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { InferenceClient } from "@huggingface/inference";
import { ChatOpenAI } from "@langchain/openai";

const [url, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "Hello!" }];
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
const provider = createOpenAICompatible({ name: "textgen", baseURL: `${url}/v1` });
const hugging = new InferenceClient("hf_unused").endpoint(url);

const found = {};
const chat = await openai.chat.completions.create({ model, messages, max_tokens: 8, seed: 1 });
found.openaiChat = chat.choices[0].message.content;
found.openaiStream = "";
for await (const chunk of await openai.chat.completions.create({ model, messages, max_tokens: 8, seed: 1, stream: true }))
  found.openaiStream += chunk.choices[0].delta.content ?? "";
found.openaiCompletion = (await openai.completions.create({ model, prompt: "The sea", max_tokens: 8 })).choices[0].text;
found.aiText = (await generateText({ model: provider(model), prompt: "Hello!", maxOutputTokens: 8 })).text;
found.aiStream = "";
for await (const text of streamText({ model: provider(model), prompt: "Hello!", maxOutputTokens: 8 }).textStream)
  found.aiStream += text;
found.aiCompletion = (await generateText({ model: provider.completionModel(model), prompt: "The sea", maxOutputTokens: 8 })).text;
found.huggingFace = (await hugging.textGeneration({ inputs: "The sea", parameters: { max_new_tokens: 8 } })).generated_text;
const schema = { title: "answer", type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"] };
const structured = createOpenAICompatible({ name: "textgen", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const asked = { model: structured(model), schema: jsonSchema(schema), prompt: "Hello!", maxOutputTokens: 40 };
found.aiObject = JSON.stringify((await generateObject(asked)).object);
const lang = new ChatOpenAI({ model, apiKey: "unused", maxTokens: 40, configuration: { baseURL: `${url}/v1` } });
found.langChain = (await lang.invoke("Hello!")).content;
found.langChainObject = JSON.stringify(await lang.withStructuredOutput(schema, { method: "jsonSchema" }).invoke("Hello!"));
console.log(JSON.stringify(found));
