"""A run's numbers through Weights & Biases or Trackio, offline; in their environment, prints what is kept.

python trackers_client.py wandb|trackio RUN SCRATCH OUR_FOLDER OUR_SITE_PACKAGES
"""

import json
import os
import sys
from pathlib import Path

name, run, scratch, *ours = sys.argv[1:]
os.environ |= {"WANDB_DIR": scratch, "WANDB_SILENT": "true", "TRACKIO_DIR": scratch}
os.environ |= {"HOME": scratch, "WANDB_CACHE_DIR": scratch, "WANDB_CONFIG_DIR": scratch}


def records(data):
    """The records of a file of W&B's: LevelDB's log format, after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def with_wandb(replay):
    from wandb.proto.wandb_internal_pb2 import Record

    with wandb.init(project="p", name="n", mode="offline") as tracker:
        assert replay(run, tracker, replay(run, tracker)) > 0
    wandb.teardown()  # until then its process may still be writing
    [file] = Path(scratch).glob("wandb/offline-run-*/*.wandb")
    rows = []
    for record in map(Record.FromString, records(file.read_bytes())):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows.append([items["_step"], {k: v for k, v in items.items() if not k.startswith("_")}])
    return rows


def with_trackio(replay):
    from trackio.sqlite_storage import SQLiteStorage

    tracker = trackio.init(project="p", name="n", embed=False)
    assert replay(run, tracker, replay(run, tracker)) > 0
    trackio.finish()
    own = ("step", "timestamp")
    return [
        [row["step"], {k: v for k, v in row.items() if k not in own}]
        for row in SQLiteStorage.get_logs("p", "n")
    ]


import trackio  # noqa: E402 # what these have of their own comes first
import wandb  # noqa: E402

sys.path.extend(ours)
from proactor.neighbours.trackers import replay  # noqa: E402

print(json.dumps({"wandb": with_wandb, "trackio": with_trackio}[name](replay)))
