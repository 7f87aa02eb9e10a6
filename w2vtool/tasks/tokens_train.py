"""Make the vocabulary of a CTC model from text: SentencePiece pieces, or letters by count.

Goes in: manifests, tables or corpora with transcripts, text files, or the training split of a
recipe, and the recipe's rules of spelling. Goes out: a file for text.sentencepiece or text.file,
and what the vocabulary costs: coverage, pieces a word, and utterances that are too short for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2vtool.errors import ConfigError, Stopped
from w2vtool.schema import Config, DataConfig, TextConfig, knob
from w2vtool.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from w2vtool.run import Run
    from w2vtool.text import OddityReport
    from w2vtool.tokens import Tokens
    from w2vtool.vocabulary import Assessment, Sample, Sentence

NAMES = {"sentencepiece": "tokens.model", "letters": "letters.txt"}
SHOWN = 10


class TokensTrainConfig(Config):
    """Text in, a vocabulary out."""

    data: DataConfig = knob(
        DataConfig(), "Splits of the recipe; train is used when no input is named."
    )
    text: TextConfig = knob(TextConfig(), "The rules that the texts are spelled by first.")
    inputs: tuple[Path, ...] = knob(
        (),
        "Manifests (.jsonl), tables (.tsv) or corpora with transcripts, or text files with one "
        "sentence a line.",
    )
    out: Path = knob(doc="The file to write, or a folder: tokens.model or letters.txt in it.")
    kind: Literal["sentencepiece", "letters"] = knob(
        "sentencepiece", "Pieces of words, or letters by falling count."
    )
    size: int | None = knob(
        None,
        "Outputs of the model: pieces or letters, and four special symbols. Needed for pieces; "
        "of letters, the rarest are left out.",
        ge=6,
    )
    model: Literal["unigram", "bpe"] = knob("unigram", "How SentencePiece chooses pieces.")
    character_coverage: float = knob(
        1.0,
        "Share of the letters of the text that must be in the vocabulary; the rarest are not.",
        gt=0,
        le=1,
        source="SentencePiece",
    )
    symbols: tuple[str, ...] = knob(
        (), "Symbols that are always tokens of their own, as the text has them after spelling."
    )
    max_sentences: int = knob(
        1_000_000, "Sentences that pieces are chosen by; of more, a random part.", ge=1
    )
    seed: int = knob(1, "Seed of that random part.", ge=0)


def tokens_train(config: TokensTrainConfig, run: Run) -> dict[str, Any]:
    """Read, sample, train, write, assess."""
    from w2vtool import vocabulary
    from w2vtool.text import OddityReport, Rules

    if config.kind == "sentencepiece" and config.size is None:
        raise ConfigError("--size is needed for pieces", hint="--size 500")
    if config.kind == "letters" and any(len(symbol) != 1 for symbol in config.symbols):
        raise ConfigError("symbols of letters are single letters", hint="--kind sentencepiece")
    rules = Rules.of(config.text)
    run.say(f"text.rules: {rules}")
    odd = OddityReport()
    found = vocabulary.sample(sentences(config, run, odd), config.max_sentences, config.seed)
    for line in odd.lines():
        run.say(f"warning: {line}")
    if found.texts > len(found.sentences):
        run.say(f"{len(found.sentences):,} of {found.texts:,} sentences are used, drawn at random")
    suffix = Path(NAMES[config.kind]).suffix
    out = config.out if config.out.suffix == suffix else config.out / NAMES[config.kind]
    tokens = write(config, found, out)
    assessed = vocabulary.assess(tokens, found)
    report(config, out, tokens, found, assessed, run)
    return {
        "tokens": str(out),
        "kind": config.kind,
        "size": len(tokens),
        "rules": str(rules),
        "texts": found.texts,
        "coverage": round(assessed.coverage, 6),
        "unknown": assessed.unknown,
        "tokens_a_word": round(assessed.tokens_a_word, 3),
        "utterances": assessed.timed,
        "too_short": assessed.too_short,
    }


def sentences(config: TokensTrainConfig, run: Run, odd: OddityReport) -> Iterator[Sentence]:
    """The texts of all inputs as the recipe spells them, with the seconds that a manifest knows.

    Odd characters are added to ``odd``.
    """
    from w2vtool import manifest, splits
    from w2vtool.lm_texts import transcripts
    from w2vtool.text import Rules, stream_lines
    from w2vtool.vocabulary import Sentence

    rules = Rules.of(config.text)
    if not config.inputs:
        if not config.data.train:
            hint = (
                "name manifests (.jsonl), tables (.tsv) or text files, or a recipe with data.train"
            )
            raise ConfigError("no text given", hint=hint)
        opened = splits.open_split(config.data, "train", rules=rules, say=run.say)
        for row in opened.rows:
            odd.add(f"{opened.path} ({row.id})", row.text or "")
            yield Sentence(rules(row.text or ""), row.duration)
    for path in config.inputs:
        if path.suffix == ".jsonl":
            for row in manifest.read(path).rows:
                odd.add(f"{path} ({row.id})", row.text or "")
                yield Sentence(rules(row.text or ""), row.duration)
        elif path.suffix == ".tsv" or path.is_dir():
            for text in transcripts(path):
                odd.add(str(path), text)
                yield Sentence(rules(text))
        else:
            for number, line in stream_lines(path):
                odd.add(f"{path}:{number}", line)
                if run.stop.signal is not None:
                    raise Stopped(run.stop.signal)
                yield Sentence(rules(line))


def write(config: TokensTrainConfig, found: Sample, out: Path) -> Tokens:
    """Train and write the vocabulary, and read it back."""
    from w2vtool import vocabulary
    from w2vtool.run import write_atomic
    from w2vtool.tokens import Tokens

    if config.kind == "letters":
        counted = vocabulary.most_frequent(
            found.letters,
            size=config.size,
            coverage=config.character_coverage,
            symbols=config.symbols,
        )
        write_atomic(out, "".join(f"{letter} {count}\n" for letter, count in counted))
        return Tokens.from_dictionary(out)
    assert config.size is not None
    texts = (sentence.text for sentence in found.sentences)
    model = vocabulary.train_pieces(
        texts,
        config.size,
        model=config.model,
        coverage=config.character_coverage,
        symbols=config.symbols,
    )
    write_atomic(out, model)
    return Tokens.from_sentencepiece(out)


def report(
    config: TokensTrainConfig,
    out: Path,
    tokens: Tokens,
    found: Sample,
    assessed: Assessment,
    run: Run,
) -> None:
    """What the vocabulary is, what it costs, and how it is used."""
    from w2vtool.text import letter_name

    unit = "pieces" if config.kind == "sentencepiece" else "letters and word ends"
    rows = [
        ("outputs", f"{len(tokens):,}, the blank and three other special symbols among them"),
        ("texts", f"{found.texts:,}"),
        ("letters covered", f"{100 * assessed.coverage:.4f} %"),
        (f"{unit} a word", f"{assessed.tokens_a_word:.2f}"),
    ]
    if assessed.timed:
        share = f"{assessed.too_short:,} of {assessed.timed:,}"
        rows.append(("too short for CTC", f"{share} utterances"))
    run.table(f"wrote {out}", ("", ""), rows)
    if assessed.unknown:
        first = list(assessed.unknown.items())[:SHOWN]
        named = ", ".join(f"{letter_name(letter)} {count} times" for letter, count in first)
        more = len(assessed.unknown) - len(first)
        run.say(f"left out: {named}" + (f", and {more} more" if more else ""))
    kind, key = ("file", "file") if config.kind == "letters" else ("sentencepiece",) * 2
    run.say(f"to train with it: text.tokens={kind} text.{key}={out}")


TASK = Task(
    TokensTrainConfig,
    tokens_train,
    flags={
        "--out": "out",
        "--kind": "kind",
        "--size": "size",
        "--model": "model",
        "--character-coverage": "character_coverage",
        "--symbols": "symbols",
        "--max-sentences": "max_sentences",
        "--seed": "seed",
        "--case": "text.case",
        "--punctuation": "text.punctuation",
    },
    inputs="inputs",
    example="w2vtool tokens train recipes/data/demo/lm.txt --size 60 --out tokens.model",
)
