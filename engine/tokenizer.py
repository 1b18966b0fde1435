"""The tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from proactor.engine.config_keys import CheckpointError
from proactor.engine.text import tokenizer_faults

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_tokenizer(folder: str | Path) -> Any | None:
    """The Hugging Face tokenizer of a model folder, from local files, or None when the folder has none.

    A tokenizer.json is loaded as it is. AutoTokenizer would choose a class by the model's architecture, and
    that class replaces the file's pre-tokenizer by its own: a Qwen2 model with another tokenizer would then
    get other ids than it was trained on. Raises CheckpointError naming the file for one that cannot be read.
    """
    place = Path(folder)
    files = [name for name in TOKENIZER_FILES if (place / name).exists()]
    if not files:
        return None
    for path in sorted(place.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path}: not a regular file")  # reading a pipe would wait for its writer
    import transformers  # takes a second: only when there is a tokenizer to load

    plain = files[0] == "tokenizer.json"
    kind = transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
    with tokenizer_faults(str(place / files[0])):
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
