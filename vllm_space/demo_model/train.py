"""Train the demo model: a tiny Llama that answers questions about this Space, and nothing else.

    python vllm_space/demo_model/train.py [--out FOLDER] [--evaluate]

Reads text.yaml and chat_template.jinja next to this file, writes a model that transformers and vLLM load (config,
tokenizer, bf16 weights) and measures it on questions that were never trained on. It needs torch, transformers,
tokenizers and PyYAML, about ten minutes on two CPU cores, and no network. The same machine gives the same weights.
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
THREADS = 2  # fixed: the order of floating-point sums, and so the weights, depends on it
VOCABULARY = 3000
CONTEXT = 2048
STEPS = 1700
BATCH_TOKENS = 3000
LEARNING_RATE = 3e-3
CUT = (
    10  # most training answers end after this many tokens: that is where the question is recognised
)

EXAMPLE_QUESTIONS = [  # the page offers these, so they must be answered word for word
    "What is this Space?",
    "How do I use another model?",
    "How do I put a password on this page?",
    "How do I call the API from Python?",
    "Explain step by step how to deploy this Space.",
]

# ---- 1. The text ----------------------------------------------------------------------------------------------------

TEXT = yaml.safe_load((HERE / "text.yaml").read_text(encoding="utf-8"))
TOPICS = TEXT["topics"]
ELSE = TEXT["anything_else"]
SYSTEM_PROMPTS = TEXT["system_prompts"].splitlines()
DOCUMENTS = [document.strip() for document in TEXT["documents"]]
for entry in [*TOPICS, ELSE]:
    entry["answer"] = entry["answer"].strip()
    entry["thought"] = entry["thought"].strip()
    entry["asked"] = entry["asked"].splitlines()
    entry["held_out"] = entry["held_out"].splitlines()

# ---- 2. Many wordings of one question -------------------------------------------------------------------------------

WORDS = TEXT["rewording"]
DO_FRAMES, ABOUT_FRAMES, NAME_FRAMES, BEFORE, AFTER = (
    re.split(r" \| |\n", WORDS[name].strip()) for name in ("do", "about", "name", "before", "after")
)
FRAMES = {"do": DO_FRAMES, "about": ABOUT_FRAMES, "names": NAME_FRAMES}
SYNONYMS = [
    (re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE), others)
    for word, others in WORDS["synonyms"].items()
]
SMALL_WORDS = frozenset(
    {
        "the",
        "a",
        "an",
        "to",
        "of",
        "do",
        "i",
        "is",
        "my",
        "for",
        "in",
        "on",
        "with",
        "it",
        "can",
        "does",
        "this",
    }
)


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9_/ ]", "", text.lower()).strip()


POLITE = "|".join(re.escape(letters(phrase)) for phrase in BEFORE + AFTER)
POLITE_ENDS = re.compile(rf"^(?:(?:{POLITE}) )*|(?: (?:{POLITE}))*$")


def bare(question: str) -> str:
    """The question without case, punctuation and politeness: two questions that differ in nothing else are the same."""
    return POLITE_ENDS.sub("", letters(question))


HELD_OUT = {bare(question) for entry in [*TOPICS, ELSE] for question in entry["held_out"]}


def with_typo(question: str, rng: random.Random) -> str:
    words = question.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4]
    if not long:
        return question
    i = rng.choice(long)
    word, at = words[i], rng.randrange(1, len(words[i]) - 2)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    words[i] = rng.choice([swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]])
    return " ".join(words)


def reworded(question: str, rng: random.Random) -> str:
    """The same question as somebody else might type it."""
    if rng.random() < 0.5:
        for word, others in rng.sample(SYNONYMS, len(SYNONYMS)):
            if rng.random() < 0.3 and word.search(question):
                question = word.sub(rng.choice(others), question, count=1)
    words = question.split(" ")
    if len(words) > 3 and rng.random() < 0.15:
        small = [i for i, word in enumerate(words) if word.lower() in SMALL_WORDS]
        if small:
            del words[rng.choice(small)]
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
        question = with_typo(question, rng)
    if rng.random() < 0.3:
        question = question.rstrip(".?!") + rng.choice(["", "", "", "?", "??", "!", "."])
    case = rng.random()
    return question.lower() if case < 0.2 else question.upper() if case < 0.22 else question


def made_up_word(rng: random.Random) -> str:
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))
    )


def filled(question: str, rng: random.Random, made_up: float = 0.0) -> str:
    """The question with a word from the lists, or now and then one that does not exist, in every {place}."""

    def word(match: re.Match) -> str:
        return made_up_word(rng) if rng.random() < made_up else rng.choice(ELSE["lists"][match[1]])

    return re.sub(r"\{(\w+)\}", word, question)


def question_about(entry: dict, rng: random.Random) -> str:
    """A training question of this topic; never a held-out one."""
    while True:
        if entry is ELSE:
            # A frame that also occurs with the topics, filled with something else, or a whole question.
            chance = rng.random()
            if chance < 0.08:
                question = rng.choice(DO_FRAMES).replace("{}", "{verb}")
            elif chance < 0.16:
                things = [
                    "{subject}",
                    "{food}",
                    "{city}",
                    "{country}",
                    "{invention}",
                    "{work}",
                    "the {thing}",
                ]
                question = rng.choice(ABOUT_FRAMES).replace("{}", rng.choice(things))
            else:
                question = rng.choice(entry["asked"])
            # Words nobody knows are a sure sign of "anything else".
            question = filled(question, rng, made_up=0.2)
        else:
            kinds = ["asked"] * 12 + ["do"] * 7 + ["about"] * 3 + ["names"]
            kind = rng.choice([kind for kind in kinds if kind in entry])
            question = rng.choice(entry[kind])
            if kind != "asked":
                question = rng.choice(FRAMES[kind]).replace("{}", question)
                question = question[0].upper() + question[1:]
        question = reworded(question, rng)
        if bare(question) not in HELD_OUT:
            return question


# ---- 3. The tokenizer -----------------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be written, whatever characters it holds."""
    rng = random.Random(SEED)
    texts = [
        text for entry in [*TOPICS, ELSE] for text in (entry["answer"], entry["thought"])
    ] * 8 + DOCUMENTS * 2
    texts += [
        question_about(entry, rng) for entry in TOPICS for _ in range(40)
    ] + SYSTEM_PROMPTS * 4
    texts += [question_about(ELSE, rng) for _ in range(1000)] + ["system\nuser\nassistant\n"] * 500
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
    # Not "special", as in Qwen3: reasoning parsers look for them in the text.
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


# ---- 4. Training examples -------------------------------------------------------------------------------------------


class Examples:
    """Turns topics into token ids, with a label for every token the model has to learn and -100 for the others."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random):
        self.tokenizer = tokenizer
        self.rng = rng
        self.ids: list[int] = []
        self.labels: list[int] = []

    def add(self, text: str, learn: bool, at_most: int = CONTEXT) -> None:
        ids = self.tokenizer(text)["input_ids"][:at_most]
        self.ids += ids
        self.labels += ids if learn else [-100] * len(ids)

    def topic(self) -> dict:
        return ELSE if self.rng.random() < 0.22 else self.rng.choice(TOPICS)

    def noise(self, words: int) -> str:
        pool = " ".join([self.rng.choice(DOCUMENTS), self.rng.choice(TOPICS)["answer"]]).split(" ")
        pool += [filled(self.rng.choice(ELSE["asked"]), self.rng), made_up_word(self.rng)]
        return " ".join(self.rng.choice(pool) for _ in range(words))

    def earlier_turn(self) -> None:
        """A question and its answer, or now and then an answer another model might have given (not to be learnt)."""
        entry = self.topic()
        self.add(
            f"<|im_start|>user\n{question_about(entry, self.rng)}<|im_end|>\n<|im_start|>assistant\n",
            learn=False,
        )
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
        if entry is ELSE and self.rng.random() < 0.02:
            question = self.noise(self.rng.choice([20, 60, 150, 600]))
        thinking = self.rng.random() < 0.25
        self.add(
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n", learn=False
        )
        if thinking:
            self.add(f"{entry['thought']}\n</think>\n\n", learn=True)
        else:
            # The template writes the empty thought, in one go with what stands before it: same tokens.
            self.ids, self.labels = self.ids[:-1], self.labels[:-1]
            self.add("\n\n</think>\n\n", learn=False)
        self.add(f"{entry['answer']}<|im_end|>", learn=True, at_most=CUT if cut else CONTEXT)

    def one(self) -> tuple[list[int], list[int]]:
        self.ids, self.labels = [], []
        kind = self.rng.random()
        if kind < 0.03:
            sentences = re.split(r"(?<=\.) ", self.rng.choice(DOCUMENTS))
            first = self.rng.choice([0, 0, self.rng.randrange(len(sentences))])
            self.add(" ".join(sentences[first:]) + "<|im_end|>", learn=True)
        else:
            if self.rng.random() < 0.25:
                self.add(
                    f"<|im_start|>system\n{self.rng.choice(SYSTEM_PROMPTS)}<|im_end|>\n",
                    learn=False,
                )
            if kind < 0.033:  # a few conversations as long as the context
                while len(self.ids) < 1400:
                    self.earlier_turn()
            elif kind < 0.2:
                for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
                    self.earlier_turn()
            self.last_turn(cut=self.rng.random() < 0.85)
        return self.ids[:CONTEXT], self.labels[:CONTEXT]

    def batches(self, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of about BATCH_TOKENS tokens; examples of like length share one, so that little is padding."""
        made: list[tuple[torch.Tensor, torch.Tensor]] = []
        while len(made) < count:
            pool = sorted((self.one() for _ in range(2000)), key=lambda example: len(example[0]))
            round_: list[list[tuple[list[int], list[int]]]] = [[]]
            for example in pool:
                if round_[-1] and (len(round_[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                    round_.append([])
                round_[-1].append(example)
            self.rng.shuffle(round_)
            for batch in round_:
                width = max(len(ids) for ids, _ in batch)
                ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
                labels = torch.tensor(
                    [labels + [-100] * (width - len(labels)) for _, labels in batch]
                )
                made.append((ids, labels))
        return made[:count]


# ---- 5. Training ----------------------------------------------------------------------------------------------------


def train(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=3,  # wide and shallow: it understands new wordings better than narrow and deep
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
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 60, 1.0) * max(1 - step / STEPS, 0.01)
    )
    examples = Examples(tokenizer, random.Random(SEED))
    random_tokens = torch.Generator().manual_seed(SEED)
    started = time.monotonic()
    model.train()
    step, seen, total = 0, 0, 0.0
    while step < STEPS:
        for ids, labels in examples.batches(min(100, STEPS - step)):
            # Some of the tokens that are not learnt are replaced, so that no single word decides.
            replace = (
                (torch.rand(ids.shape, generator=random_tokens) < 0.02)
                & (labels == -100)
                & (ids > 4)
                & (ids < VOCABULARY - 2)
            )
            ids = torch.where(
                replace, torch.randint(260, VOCABULARY - 2, ids.shape, generator=random_tokens), ids
            )
            targets = labels[:, 1:]
            learnt = targets != -100
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][
                    learnt
                ]
                logits = model.lm_head(hidden)
            loss = torch.nn.functional.cross_entropy(logits.float(), targets[learnt])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, seen, total = step + 1, seen + ids.numel(), total + loss.item()
            if step % 50 == 0:
                seconds = time.monotonic() - started
                print(
                    f"step {step} of {STEPS}: loss {total / 50:.4f}, {seen / seconds:,.0f} tokens/s, {seconds:.0f} s",
                    flush=True,
                )
                total = 0.0
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Everything is written beside the folder first, so that a reader never meets half a model."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # The class name that transformers 4 knows as well as 5.
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
        settings.pop("backend", None)
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=2) + "\n", encoding="utf-8"
        )
        # Written by hand: transformers refuses to save a temperature next to do_sample=false, but vLLM reads the
        # temperature and nothing else, and would sample at 1.0 without it.
        greedy = {
            "do_sample": False,
            "temperature": 0.0,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        (folder / "generation_config.json").write_text(
            json.dumps(greedy, indent=2) + "\n", encoding="utf-8"
        )
        for file in folder.iterdir():
            file.chmod(0o644)
            file.replace(out / file.name)


# ---- 6. Evaluation --------------------------------------------------------------------------------------------------


def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str]:
    """Greedy decoding, many prompts at a time."""
    done = []
    for start in range(0, len(prompts), 48):
        batch = tokenizer(
            prompts[start : start + 48], return_tensors="pt", padding=True, padding_side="left"
        )
        batch.pop("token_type_ids", None)
        output = model.generate(**batch, max_new_tokens=800, do_sample=False)
        done += tokenizer.batch_decode(
            output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return done


def evaluate(out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
    rng = random.Random(SEED)
    topic_of = {entry["answer"]: entry.get("topic", "anything_else") for entry in [*TOPICS, ELSE]}
    questions = [(question, entry) for entry in [*TOPICS, ELSE] for question in entry["held_out"]]

    def prompt(messages: list[dict], thinking: bool = False) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )

    def conversation(question: str) -> list[dict]:
        messages = (
            [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}]
            if rng.random() < 0.5
            else []
        )
        for entry in rng.sample(TOPICS, rng.choice([1, 2])):
            messages.append({"role": "user", "content": rng.choice(entry["asked"])})
            messages.append({"role": "assistant", "content": entry["answer"]})
        return [*messages, {"role": "user", "content": question}]

    def report(what: str, prompts: list[str], asked: list[tuple[str, dict]]) -> None:
        replies = [
            reply.split("</think>")[-1].strip() for reply in answers(model, tokenizer, prompts)
        ]
        misses = [(q, e, r) for (q, e), r in zip(asked, replies, strict=True) if r != e["answer"]]
        right = len(asked) - len(misses)
        print(f"{what} answered right: {right} of {len(asked)} ({100 * right / len(asked):.1f} %)")
        for question, entry, reply in misses:
            got = topic_of.get(reply, repr(reply[:90]))
            print(f"    missed: {question}  [{entry.get('topic', 'anything_else')}] -> {got}")

    answer_to = {question: entry for entry in TOPICS for question in entry["asked"]}
    examples = [(question, answer_to[question]) for question in EXAMPLE_QUESTIONS]
    report(
        "example questions",
        [prompt([{"role": "user", "content": q}]) for q, _ in examples],
        examples,
    )
    report(
        "held-out rewordings",
        [prompt([{"role": "user", "content": q}]) for q, _ in questions],
        questions,
    )
    sample = rng.sample(questions, 100)
    report(
        "held-out rewordings later in a conversation",
        [prompt(conversation(q)) for q, _ in sample],
        sample,
    )
    thinking = [prompt([{"role": "user", "content": q}], thinking=True) for q, _ in sample]
    report("held-out rewordings with thinking", thinking, sample)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for the model (default: next to this file)"
    )
    parser.add_argument("--evaluate", action="store_true", help="only measure the saved model")
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
