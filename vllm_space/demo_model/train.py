"""Train the demo model: a tiny Llama that answers questions about this Space, and nothing else.

    python vllm_space/demo_model/train.py [--out FOLDER] [--evaluate]

Reads text.yaml and chat_template.jinja next to this file, writes a model that transformers and vLLM
can load (config, tokenizer, bfloat16 weights), and evaluates it on held-out paraphrases. It needs
torch, transformers, tokenizers and PyYAML, 13 minutes on two CPU cores, and no network. Training is
deterministic: the same machine produces the same weights.
"""

import argparse
import json
import random
import re
import tempfile
import time
from pathlib import Path

import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).resolve().parent
SEED = 1
THREADS = 2  # fixed, since it decides the order of floating-point sums and so the weights
VOCABULARY = 3000
CONTEXT = 2048
STEPS = 1700
BATCH_TOKENS = 3000
LEARNING_RATE = 3e-3
CUT_ANSWER = 10  # tokens kept of most training answers: they are enough to recognise the topic

EXAMPLE_QUESTIONS = [  # the page suggests these, so their answers must be exact
    "What is this Space?",
    "How do I use another model?",
    "How do I put a password on this page?",
    "How do I call the API from Python?",
    "Explain step by step how to deploy this Space.",
]

# -- 1. The text -----------------------------------------------------------------------------------

TEXT = yaml.safe_load((HERE / "text.yaml").read_text(encoding="utf-8"))
TOPICS = TEXT["topics"]
OFF_TOPIC = TEXT["anything_else"]
SYSTEM_PROMPTS = TEXT["system_prompts"].splitlines()
DOCUMENTS = [document.strip() for document in TEXT["documents"]]
for entry in [*TOPICS, OFF_TOPIC]:
    entry["answer"] = entry["answer"].strip()
    entry["thought"] = entry["thought"].strip()
    entry["asked"] = entry["asked"].splitlines()
    entry["held_out"] = entry["held_out"].splitlines()

# -- 2. Paraphrases of a question ------------------------------------------------------------------

REWORDING = TEXT["rewording"]
DO_FRAMES, ABOUT_FRAMES, NAME_FRAMES, BEFORE, AFTER = (
    re.split(r" \| |\n", REWORDING[name].strip())
    for name in ("do", "about", "name", "before", "after")
)
FRAMES = {"do": DO_FRAMES, "about": ABOUT_FRAMES, "names": NAME_FRAMES}
SYNONYMS = [
    (re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE), synonyms)
    for word, synonyms in REWORDING["synonyms"].items()
]
SMALL_WORDS = frozenset("the a an to of do i is my for in on with it can does this".split())


def simplify(text: str) -> str:
    return re.sub(r"[^a-z0-9_/ ]", "", text.lower()).strip()


POLITE = "|".join(re.escape(simplify(phrase)) for phrase in BEFORE + AFTER)
POLITE_ENDS = re.compile(rf"^(?:(?:{POLITE}) )*|(?: (?:{POLITE}))*$")


def normalize(question: str) -> str:
    """Drop case, punctuation and polite phrases. Questions equal after that count as the same."""
    return POLITE_ENDS.sub("", simplify(question))


HELD_OUT = {normalize(question) for entry in [*TOPICS, OFF_TOPIC] for question in entry["held_out"]}


def add_typo(question: str, rng: random.Random) -> str:
    words = question.split(" ")
    long_words = [i for i, word in enumerate(words) if len(word) > 4]
    if not long_words:
        return question
    i = rng.choice(long_words)
    word, at = words[i], rng.randrange(1, len(words[i]) - 2)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    words[i] = rng.choice([swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]])
    return " ".join(words)


def reword(question: str, rng: random.Random) -> str:
    """The same question as another visitor might type it."""
    if rng.random() < 0.5:
        for word, synonyms in rng.sample(SYNONYMS, len(SYNONYMS)):
            if rng.random() < 0.3 and word.search(question):
                question = word.sub(rng.choice(synonyms), question, count=1)
    words = question.split(" ")
    if len(words) > 3 and rng.random() < 0.15:
        small_words = [i for i, word in enumerate(words) if word.lower() in SMALL_WORDS]
        if small_words:
            del words[rng.choice(small_words)]
            question = " ".join(words)
    if len(words) > 4 and rng.random() < 0.08:
        del words[rng.randrange(len(words))]
        question = " ".join(words)
    if rng.random() < 0.2:
        mark = question[-1] if question[-1] in ".?!" else ""
        after = rng.choice(AFTER)
        question = question.rstrip(".?!") + ("" if after.startswith(",") else " ") + after + mark
    if rng.random() < 0.25:
        if question[:2] not in ("I ", "I'") and not question[:2].isupper():
            question = question[0].lower() + question[1:]
        before = rng.choice(BEFORE)
        question = f"{before[0].upper() + before[1:] if rng.random() < 0.7 else before} {question}"
    if rng.random() < 0.12:
        question = add_typo(question, rng)
    if rng.random() < 0.3:
        question = question.rstrip(".?!") + rng.choice(["", "", "", "?", "??", "!", "."])
    case = rng.random()
    return question.lower() if case < 0.2 else question.upper() if case < 0.22 else question


def invent_word(rng: random.Random) -> str:
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))
    )


def fill_placeholders(question: str, rng: random.Random, invented: float = 0.0) -> str:
    """Replace every {name} by a word from that list, or an invented one with that probability."""
    lists = OFF_TOPIC["lists"]

    def word(match: re.Match) -> str:
        return invent_word(rng) if rng.random() < invented else rng.choice(lists[match[1]])

    return re.sub(r"\{(\w+)\}", word, question)


def question_about(entry: dict, rng: random.Random) -> str:
    """A random training question on this topic, never a held-out one."""
    while True:
        if entry is OFF_TOPIC:
            # A whole question, or a frame of the topics with something off topic in it.
            chance = rng.random()
            if chance < 0.08:
                question = rng.choice(DO_FRAMES).replace("{}", "{verb}")
            elif chance < 0.16:
                names = ["subject", "food", "city", "country", "invention", "work"]
                things = [f"{{{name}}}" for name in names] + ["the {thing}"]
                question = rng.choice(ABOUT_FRAMES).replace("{}", rng.choice(things))
            else:
                question = rng.choice(entry["asked"])
            # Unknown words are a sure sign of an off-topic question.
            question = fill_placeholders(question, rng, invented=0.2)
        else:
            kinds = ["asked"] * 12 + ["do"] * 7 + ["about"] * 3 + ["names"]
            kind = rng.choice([kind for kind in kinds if kind in entry])
            question = rng.choice(entry[kind])
            if kind != "asked":
                question = rng.choice(FRAMES[kind]).replace("{}", question)
                question = question[0].upper() + question[1:]
        question = reword(question, rng)
        if normalize(question) not in HELD_OUT:
            return question


# -- 3. The tokenizer ------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, which can encode any text."""
    rng = random.Random(SEED)
    entries = [*TOPICS, OFF_TOPIC]
    texts = [entry[field] for entry in entries for field in ("answer", "thought")] * 8
    texts += DOCUMENTS * 2
    texts += [question_about(entry, rng) for entry in TOPICS for _ in range(40)]
    texts += SYSTEM_PROMPTS * 4
    texts += [question_about(OFF_TOPIC, rng) for _ in range(1000)]
    texts += ["system\nuser\nassistant\n"] * 500
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 2,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # Not marked as special, as in Qwen3: reasoning parsers look for them in the text.
    tokenizer.add_tokens(
        [AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=(HERE / "chat_template.jinja").read_text(encoding="utf-8"),
    )


# -- 4. Training examples --------------------------------------------------------------------------


class Examples:
    """Turns topics into token ids and labels. The label of a token not to be learned is -100."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random):
        self.tokenizer = tokenizer
        self.rng = rng
        self.ids: list[int] = []
        self.labels: list[int] = []

    def add(self, text: str, learn: bool, at_most: int = CONTEXT) -> None:
        ids = self.tokenizer(text)["input_ids"][:at_most]
        self.ids += ids
        self.labels += ids if learn else [-100] * len(ids)

    def ask(self, question: str) -> None:
        self.add(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", learn=False)

    def topic(self) -> dict:
        return OFF_TOPIC if self.rng.random() < 0.22 else self.rng.choice(TOPICS)

    def noise(self, words: int) -> str:
        """Random words, in no order."""
        pool = " ".join([self.rng.choice(DOCUMENTS), self.rng.choice(TOPICS)["answer"]]).split(" ")
        pool.append(fill_placeholders(self.rng.choice(OFF_TOPIC["asked"]), self.rng))
        pool.append(invent_word(self.rng))
        return " ".join(self.rng.choice(pool) for _ in range(words))

    def earlier_turn(self) -> None:
        """A question and its answer, or sometimes one not to be learned, as from another model."""
        entry = self.topic()
        self.ask(question_about(entry, self.rng))
        chance = self.rng.random()
        if chance < 0.15:
            self.add(f"{self.noise(self.rng.randint(1, 40))}<|im_end|>\n", learn=False)
        elif chance < 0.3:
            self.add(f"{self.rng.choice(TOPICS)['answer']}<|im_end|>\n", learn=False)
        else:
            self.add(f"{entry['answer']}<|im_end|>", learn=True)
            self.add("\n", learn=False)

    def last_turn(self, cut: bool) -> None:
        entry = self.topic()
        question = question_about(entry, self.rng)
        if entry is OFF_TOPIC and self.rng.random() < 0.02:
            question = self.noise(self.rng.choice([20, 60, 150, 600]))
        reasoning = self.rng.random() < 0.25
        self.ask(question)
        self.add("<think>\n", learn=False)
        if reasoning:
            self.add(f"{entry['thought']}\n</think>\n\n", learn=True)
        else:
            # The chat template writes empty reasoning, whose first newline shares a token with the
            # one before it. Encode both together to get the same tokens.
            self.ids, self.labels = self.ids[:-1], self.labels[:-1]
            self.add("\n\n</think>\n\n", learn=False)
        self.add(f"{entry['answer']}<|im_end|>", learn=True, at_most=CUT_ANSWER if cut else CONTEXT)

    def example(self) -> tuple[list[int], list[int]]:
        """The (ids, labels) of a conversation, or sometimes of a document."""
        self.ids, self.labels = [], []
        kind = self.rng.random()
        if kind < 0.03:
            sentences = re.split(r"(?<=\.) ", self.rng.choice(DOCUMENTS))
            first = self.rng.choice([0, 0, self.rng.randrange(len(sentences))])
            self.add(" ".join(sentences[first:]) + "<|im_end|>", learn=True)
        else:
            if self.rng.random() < 0.25:
                prompt = self.rng.choice(SYSTEM_PROMPTS)
                self.add(f"<|im_start|>system\n{prompt}<|im_end|>\n", learn=False)
            if kind < 0.033:  # a few conversations as long as the context
                while len(self.ids) < 1400:
                    self.earlier_turn()
            elif kind < 0.2:
                for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
                    self.earlier_turn()
            self.last_turn(cut=self.rng.random() < 0.85)
        return self.ids[:CONTEXT], self.labels[:CONTEXT]

    def batches(self, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of up to BATCH_TOKENS tokens, of examples of similar length to avoid padding."""
        batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        while len(batches) < count:
            pool = [self.example() for _ in range(2000)]
            pool.sort(key=lambda example: len(example[0]))
            groups: list[list[tuple[list[int], list[int]]]] = [[]]
            for example in pool:
                if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                    groups.append([])
                groups[-1].append(example)
            self.rng.shuffle(groups)
            for group in groups:
                width = max(len(ids) for ids, _ in group)
                ids = [ids + [0] * (width - len(ids)) for ids, _ in group]
                labels = [labels + [-100] * (width - len(labels)) for _, labels in group]
                batches.append((torch.tensor(ids), torch.tensor(labels)))
        return batches[:count]


# -- 5. Training -----------------------------------------------------------------------------------


def train(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=3,  # wide and shallow: generalises better to new wordings than deep
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 60, 1.0) * max(1 - step / STEPS, 0.01)
    )
    examples = Examples(tokenizer, random.Random(SEED))
    generator = torch.Generator().manual_seed(SEED)
    started = time.monotonic()
    model.train()
    step, tokens, total_loss = 0, 0, 0.0
    while step < STEPS:
        for ids, labels in examples.batches(min(100, STEPS - step)):
            # Replace some of the tokens that are not learned, so that no single word is decisive.
            replace = (
                (torch.rand(ids.shape, generator=generator) < 0.02)
                & (labels == -100)
                & (ids > 4)
                & (ids < VOCABULARY - 2)
            )
            noise = torch.randint(260, VOCABULARY - 2, ids.shape, generator=generator)
            ids = torch.where(replace, noise, ids)
            targets = labels[:, 1:]
            learned = targets != -100
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
                logits = model.lm_head(hidden[:, :-1][learned])
            loss = torch.nn.functional.cross_entropy(logits.float(), targets[learned])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, tokens, total_loss = step + 1, tokens + ids.numel(), total_loss + loss.item()
            if step % 50 == 0:
                seconds = time.monotonic() - started
                print(
                    f"step {step} of {STEPS}: loss {total_loss / 50:.4f}, "
                    f"{tokens / seconds:,.0f} tokens/s, {seconds:.0f} s",
                    flush=True,
                )
                total_loss = 0.0
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write to a temporary folder first, so that nobody ever loads an incomplete model."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # A class name that both transformers 4 and 5 know.
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
        settings.pop("backend", None)
        write_json(path, settings)
        # transformers refuses to save a temperature together with do_sample=false. vLLM reads only
        # the temperature and would sample at 1.0 without it.
        greedy = {
            "do_sample": False,
            "temperature": 0.0,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        write_json(folder / "generation_config.json", greedy)
        for file in folder.iterdir():
            file.chmod(0o644)
            file.replace(out / file.name)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# -- 6. Evaluation ---------------------------------------------------------------------------------


def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str]:
    """Greedy decoding, in batches."""
    replies = []
    for start in range(0, len(prompts), 48):
        batch = tokenizer(
            prompts[start : start + 48], return_tensors="pt", padding=True, padding_side="left"
        )
        batch.pop("token_type_ids", None)
        output = model.generate(**batch, max_new_tokens=800, do_sample=False)
        output = output[:, batch["input_ids"].shape[1] :]
        replies += tokenizer.batch_decode(output, skip_special_tokens=True)
    return replies


def evaluate(out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
    rng = random.Random(SEED)
    topic_of = {entry["answer"]: topic_name(entry) for entry in [*TOPICS, OFF_TOPIC]}

    def prompt(messages: list[dict], reasoning: bool = False) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=reasoning
        )

    def first_message(question: str) -> list[dict]:
        return [{"role": "user", "content": question}]

    def later_message(question: str) -> list[dict]:
        messages = []
        if rng.random() < 0.5:
            messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        for entry in rng.sample(TOPICS, rng.choice([1, 2])):
            messages.append({"role": "user", "content": rng.choice(entry["asked"])})
            messages.append({"role": "assistant", "content": entry["answer"]})
        return messages + first_message(question)

    def report(what: str, prompts: list[str], questions: list[tuple[str, dict]]) -> None:
        replies = [
            reply.split("</think>")[-1].strip() for reply in generate(model, tokenizer, prompts)
        ]
        misses = [
            (question, topic_name(entry), reply)
            for (question, entry), reply in zip(questions, replies, strict=True)
            if reply != entry["answer"]
        ]
        correct, total = len(questions) - len(misses), len(questions)
        print(f"{what}: {correct} of {total} answers exact ({100 * correct / total:.1f} %)")
        for question, topic, reply in misses:
            print(f"    missed: {question}  [{topic}] -> {topic_of.get(reply, repr(reply[:90]))}")

    answer_to = {question: entry for entry in TOPICS for question in entry["asked"]}
    examples = [(question, answer_to[question]) for question in EXAMPLE_QUESTIONS]
    report("example questions", [prompt(first_message(q)) for q, _ in examples], examples)
    held_out = [
        (question, entry) for entry in [*TOPICS, OFF_TOPIC] for question in entry["held_out"]
    ]
    report("held-out paraphrases", [prompt(first_message(q)) for q, _ in held_out], held_out)
    sample = rng.sample(held_out, 100)
    prompts = [prompt(later_message(q)) for q, _ in sample]
    report("held-out paraphrases later in a conversation", prompts, sample)
    prompts = [prompt(first_message(q), reasoning=True) for q, _ in sample]
    report("held-out paraphrases with reasoning", prompts, sample)


def topic_name(entry: dict) -> str:
    return entry.get("topic", "anything_else")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for the model (default: next to this file)"
    )
    parser.add_argument("--evaluate", action="store_true", help="only evaluate the saved model")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    if not options.evaluate:
        started = time.monotonic()
        tokenizer = make_tokenizer()
        save(train(tokenizer), tokenizer, options.out)
        print(f"trained in {time.monotonic() - started:.0f} s")
    evaluate(options.out)


if __name__ == "__main__":
    main()
