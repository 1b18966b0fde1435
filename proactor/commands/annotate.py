"""``proactor annotate``: opportunity windows for a corpus or for your own transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proactor.commands.common import TrustCode, UsageError, console, parse_pair, terminal
from proactor.progress import Progress

if TYPE_CHECKING:
    from proactor.annotation import Oracle
    from proactor.dialogue.catalog import Catalog
    from proactor.sources import Corpus

ORACLES = ("log", "engine", "endpoint")


Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="a corpus (with --path), or JSONL transcripts", show_default=False),
]
CatalogFile = Annotated[
    str | None,
    typer.Option(help="tools, in any format that `proactor catalog` reads; default: the corpus' own"),
]
ReaderOptions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="an option of the reader, e.g. empty=drop user=Zoe one_speaker=keep; repeatable",
    ),
]
Gates = Annotated[
    bool, typer.Option("--gates/--no-gates", help="drop dialogues that fail a quality gate, G1 or G2")
]
Causality = Annotated[
    bool, typer.Option("--causality/--no-causality", help="quality gate G4: drop values known only later")
]
Infer = Annotated[
    bool,
    typer.Option("--infer/--no-infer", help="infer when an enum's value was known that nobody said (log)"),
]
Brief = Annotated[
    bool, typer.Option(help="send the prompt without instructions, to a model trained that way (engine)")
]
Constrained = Annotated[
    bool,
    typer.Option("--constrained", help="let the engine write nothing but answers in the asked form"),
]
Concurrency = Annotated[int, typer.Option(min=1, help="requests in flight at once (endpoint)")]
PriceIn = Annotated[float | None, typer.Option(help="price of a million prompt tokens, for the estimate")]
MaxFailedShare = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="fail where more than this share of dialogues gets no answer"),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="replace the annotation in OUT; default: continue it")]


def annotate(
    source: Source,
    catalog: CatalogFile = None,
    trust_code: TrustCode = False,
    oracle: Annotated[str, typer.Option(help="log, engine or endpoint")] = "log",
    model: Annotated[str, typer.Option(help="model folder (engine) or name (endpoint)")] = "",
    adapter: Annotated[Path | None, typer.Option(help="adapter folder for the engine")] = None,
    base_url: Annotated[str | None, typer.Option(help="URL of the endpoint; default: OpenAI's")] = None,
    path: Annotated[Path | None, typer.Option(help="folder or file of a corpus")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many dialogues")] = None,
    option: ReaderOptions = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("annotated"),
    gates: Gates = True,
    causality: Causality = True,
    infer: Infer = True,
    brief: Brief = False,
    constrained: Constrained = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of one answer")] = 512,
    concurrency: Concurrency = 8,
    timeout: Annotated[float, typer.Option(help="seconds for one request (endpoint)")] = 60.0,
    price_in: PriceIn = None,
    price_out: Annotated[
        float | None, typer.Option(help="price of a million answer tokens, for the estimate")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="seed that chooses dialogues: for --limit, and to annotate twice")
    ] = 0,
    max_failed_share: MaxFailedShare = 0.5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the estimate and stop")] = False,
    fresh: Fresh = False,
) -> None:
    """Find the turns at which an agent could act, and write them as windows of each dialogue.

    Writes windows.jsonl, catalog.json and report.json into OUT.
    """
    from proactor.annotation import AnnotationOptions
    from proactor.annotation import annotate as run
    from proactor.annotation.estimate import estimate
    from proactor.annotation.report_json import notes, report_table

    _check_oracle(oracle, model, base_url, adapter, brief=brief, constrained=constrained)
    tools_of = {"catalog": catalog, "trust_code": trust_code} if catalog else {}
    corpus = _read_corpus(source, path, limit, seed, tools_of, option or [])
    if oracle == "log" and not any(d.references or d.withdrawn for d in corpus.dialogues):
        raise UsageError(_explain_no_log(source, catalog))
    tools = _read_tools(catalog, trust_code, corpus)
    options = AnnotationOptions(gates=gates, causality=causality, seed=seed)
    with terminal() as ui:
        annotator = _open_oracle(
            oracle, model, adapter, base_url, infer, brief, constrained, max_tokens, concurrency, timeout, ui
        )
        ui.say(str(estimate(corpus.dialogues, tools, annotator, price_in, price_out, brief=brief)))
        if dry_run:
            return
        report = run(
            corpus.dialogues,
            tools,
            annotator,
            out,
            options,
            ui,
            reader=corpus,
            fresh=fresh,
            max_failed_share=max_failed_share,
        )
    console.print(report_table(report))
    for line in notes(report):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"{out}: windows.jsonl, catalog.json, report.json", markup=False)
    if not report["dialogues"]["kept"]:
        console.print("no dialogue was kept", markup=False)
        raise typer.Exit(1)
    console.print(
        f"Read some of the windows. Then: proactor train CONFIG, with data: {{source: jsonl, path: {out}}}",
        markup=False,
        soft_wrap=True,
    )


def _explain_no_log(source: str, catalog: str | None) -> str:
    """Why ``--oracle log`` cannot work on transcripts without actions, and what can."""
    tools = "" if catalog else ", and --catalog FILE with your tools (`proactor catalog DEFINITIONS -o FILE`)"
    return (
        f"--oracle log: {source} has no log of actions to read. A model can annotate the words alone: "
        "--oracle engine --model FOLDER_OR_HUB_ID runs one here, --oracle endpoint --model NAME asks OpenAI "
        f"(OPENAI_API_KEY) or your server (--base-url URL){tools}. With the calls that were made, as "
        "`references` or `tool_calls` in the file, the log needs no model"
    )


def _check_oracle(
    oracle: str, model: str, base_url: str | None, adapter: Path | None, *, brief: bool, constrained: bool
) -> None:
    """Raise UsageError for an unknown oracle, or for options that do not go with it."""
    if oracle not in ORACLES:
        raise UsageError(f"--oracle {oracle}: {', '.join(ORACLES)}")
    if (oracle == "log") == bool(model):
        needs = "asks no model: --model needs --oracle engine or endpoint" if model else "needs --model"
        raise UsageError(f"--oracle {oracle} {needs}")
    for name, given, only in (
        ("base-url", base_url is not None, "endpoint"),
        ("adapter", adapter is not None, "engine"),
        ("brief", brief, "engine"),
        ("constrained", constrained, "engine"),
    ):
        if given and oracle != only:
            raise UsageError(f"--{name} does not go with --oracle {oracle}")


def _read_corpus(
    source: str,
    path: Path | None,
    limit: int | None,
    seed: int,
    tools_of: dict[str, Any],
    pairs: list[str],
) -> Corpus:
    """The dialogues of a corpus by name, or of a file of transcripts; ``pairs``: KEY=VALUE for the reader.

    ``tools_of``: options of the reader of transcripts, which checks them against the tools.
    """
    from proactor.sources import NAMES, load, options_of

    name = source
    if source not in NAMES:
        if not Path(source).exists():
            raise UsageError(f"SOURCE {source}: neither a corpus ({', '.join(NAMES)}) nor a file or folder")
        if path is not None:
            raise UsageError(f"SOURCE {source} is a file already: --path is for corpora")
        name, path = "jsonl", Path(source)
    options = (tools_of if name == "jsonl" else {}) | dict(parse_pair(text) for text in pairs)
    corpus = load(name, path, limit=limit, seed=seed, **options_of(options))
    if not corpus.dialogues:
        raise UsageError(f"SOURCE {source}: no dialogues")
    return corpus


def _read_tools(file: str | None, trust_code: bool, corpus: Corpus) -> Catalog:
    """The tools of a file, with proposed effects, or the corpus' own."""
    if file is not None:
        from proactor.catalogs import propose, read_catalog

        return propose(read_catalog(file, trust_code=trust_code)).catalog
    if not len(corpus.catalog):
        raise UsageError("--catalog: the transcripts bring no tools of their own")
    return corpus.catalog


def _open_oracle(
    kind: str,
    model: str,
    adapter: Path | None,
    base_url: str | None,
    infer: bool,
    brief: bool,
    constrained: bool,
    max_tokens: int,
    concurrency: int,
    timeout: float,
    ui: Progress,
) -> Oracle:
    if kind == "log":
        from proactor.annotation.log_oracle import LogOracle

        return LogOracle(infer=infer)
    if kind == "endpoint":
        from proactor.annotation.endpoint_oracle import EndpointOracle
        from proactor.endpoint import Endpoint

        return EndpointOracle(
            Endpoint(model, base_url=base_url, timeout=timeout, concurrency=concurrency), max_tokens
        )
    from proactor.annotation.engine_oracle import EngineOracle, load_engine

    return EngineOracle(
        load_engine(model, adapter, ui),
        brief=brief,
        max_tokens=max_tokens,
        adapter=adapter or True,
        constrained=constrained,
    )
