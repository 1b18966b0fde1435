"""Constrained decoding: are all outputs valid, and what does a token cost?

    python -m bench.constrained [--outputs 10000] [--model FOLDER] [--batches 1 8 32] [--tokens 64]

First a model of random weights, which has no idea of JSON, draws ``--outputs`` texts over the schemas of
`bench.constrained_schemas`; each is read and checked with `jsonschema`. A text that ``LONGEST`` tokens cut is
counted and drawn anew. Then ``--model`` (default: the same one) decodes with and without a constraint whose
texts do not end, and with a mask that allows everything: what that costs more than nothing is the sampler's,
and the rest is the constraint's. Times are CPU time of the process, since others may use the cores; the least
of ``--repeats``. Writes ``bench/results/<machine>/constrained.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.constrained_schemas import FLAG, INTEGER, SCHEMAS, SHARE, WORD, Schema, enum, record
from bench.models import EOS, write_tiny_qwen2
from bench.records import add_results, say, stamp, write_record
from proactor.engine import Constraint, Engine, Sampling

ENDLESS: Schema = {
    "type": "array",
    "items": record(id=INTEGER, name=WORD, kind=enum("a", "b", "c"), share=SHARE, on=FLAG),
    "minItems": 10**6,
}
"""A schema whose texts do not end within any number of tokens that is measured."""
LONGEST = 2000
"""Most tokens of an output."""
PROMPT = "Write some JSON:\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.constrained", description=__doc__.split("\n")[0])
    parser.add_argument("--outputs", type=int, default=10_000)
    parser.add_argument("--model", type=Path, help="model folder with a tokenizer, for the times")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each timed sample")
    parser.add_argument("--repeats", type=int, default=3)
    add_results(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_model(Path(scratch) / "model")
        engine = Engine.load(folder, max_batch=128, kv_tokens=128 * 1024)
        result = stamp() | {"threads": torch.get_num_threads(), "validity": validity(engine, options.outputs)}
        if options.model is not None:
            engine.release()
            engine = Engine.load(options.model)
        result["model"] = "random weights, 2 layers" if options.model is None else options.model.name
        result["vocabulary"], result["tokens"] = engine.vocabulary, options.tokens
        result["first_use_seconds"] = first_use(engine)
        result["cost"] = [cost(engine, size, options) for size in options.batches]
    say(str(write_record(options.results, "constrained", result)))
    show(result)
    print(json.dumps(result))


# -- validity ---


def write_model(folder: Path) -> Path:
    """A model of random weights with a byte-level tokenizer that has learned the schemas' own texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<end>", "<unknown>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    core.train_from_iterator([json.dumps(schema, indent=1) for schema in SCHEMAS.values()] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token=specials[EOS])
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return write_tiny_qwen2(folder, tokenizer=tokenizer, **size)


def validity(engine: Engine, outputs: int) -> dict[str, Any]:
    """Counts of ``outputs`` complete texts over all schemas: valid, or invalid (with the first one of each
    schema); and those cut, beside them.
    """
    from jsonschema import Draft202012Validator

    counts: Counter[str] = Counter(outputs=0, valid=0, invalid=0, cut=0, tokens=0)
    wrong: dict[str, str] = {}
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        wanted = outputs * (number + 1) // len(SCHEMAS)
        for attempt in range(10):
            if counts["outputs"] == wanted:
                break
            sampling = Sampling(
                n=wanted - counts["outputs"],
                max_tokens=LONGEST,
                seed=number + len(SCHEMAS) * attempt,
                constraint=Constraint(json_schema=schema),
            )
            for sample in engine.sample([PROMPT], sampling)[0].samples:
                counts["tokens"] += len(sample.token_ids)
                if sample.finish_reason != "stop":
                    counts["cut"] += 1
                    continue
                fault = _fault(validator, sample.text)
                counts.update({"outputs": 1, "invalid" if fault else "valid": 1})
                if fault:
                    wrong.setdefault(name, f"{fault}: {sample.text[:200]}")
        say(f"{name}: {dict(counts)}")
    return {**counts, "schemas": len(SCHEMAS), "wrong": wrong}


def _fault(validator: Any, text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError as error:
        return str(error)
    return "; ".join(error.message for error in validator.iter_errors(value))[:200]


# -- cost ---


def first_use(engine: Engine) -> float:
    """CPU seconds of a first constraint: the vocabulary is read."""
    start = time.process_time()
    engine.sample([PROMPT], Sampling(max_tokens=1, constraint=Constraint(regex="[0-9]+")))
    return round(time.process_time() - start, 3)


def cost(engine: Engine, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds a step of ``size`` sequences: free, with a mask of everything, with a constraint."""
    everything = torch.ones(engine.config.vocab_size, dtype=torch.bool)
    ways: dict[str, dict[str, Any]] = {
        "free": {"ignore_eos": True},
        "mask": {"ignore_eos": True, "logit_mask": lambda ids, position: everything},
        "constraint": {"constraint": Constraint(json_schema=ENDLESS)},
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(options.repeats + 1):
        for way, changes in ways.items():
            sampling = Sampling(n=size, max_tokens=options.tokens, seed=seed, **changes)
            start = time.process_time()
            [group] = engine.sample([PROMPT], sampling)
            times[way].append((time.process_time() - start) / options.tokens * 1000)
            assert all(len(sample.token_ids) == options.tokens for sample in group.samples)
    best = {way: round(min(taken[1:]), 3) for way, taken in times.items()}  # the first warms up
    more = best["constraint"] - best["free"]
    return {
        "batch": size,
        **{f"{way}_ms": value for way, value in best.items()},
        "overhead_us_a_token": round(more / size * 1000, 1),
        "overhead_percent": round(100 * more / best["free"], 1),
    }


def show(result: dict[str, Any]) -> None:
    """Print the costs as a table."""
    where = f"{result['model']}, {result['vocabulary']} ids, threads: {result['threads']}"
    table = Table(title=f"CPU time of a step, ms ({where})")
    for column in ("batch", "free", "mask of everything", "constraint", "more, µs a token", "more, %"):
        table.add_column(column, justify="right")
    for row in result["cost"]:
        table.add_row(*map(str, row.values()))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
