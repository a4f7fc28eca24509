"""What a checkpoint says of how it likes to be sampled: `generation_config.json`, for tasks that say nothing.

Which tokens end a text is read with the tokenizer (`model_store/tokenizer_files.py`).
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_store.errors import UnreadableFile
from model_store.files import read_json_if_any
from model_store.sampling import SAMPLING
from model_store.task import Task

# Of a checkpoint that says nothing: what keeps small models from the unlikely words that they rank badly.
FOR_SMALL_MODELS: Mapping[str, float | int] = {"temperature": 0.7, "top_p": 0.9}

_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size")
_DRAW = ("temperature", "top_k", "top_p", "min_p")
# transformers' own defaults, which old versions wrote into each config.json
_UNSAID = {"temperature": 1, "top_k": 50, "top_p": 1, "repetition_penalty": 1, "no_repeat_ngram_size": 0}
# what changes texts there and is not read here, and its value that changes nothing
_UNREAD: Mapping[str, Any] = {
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
    **dict.fromkeys(("guidance_scale", "penalty_alpha", "stop_strings")),
    **dict.fromkeys(("typical_p", "length_penalty", "encoder_repetition_penalty", "num_beams"), 1),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty", "min_length", "early_stopping"), 0),
    "min_new_tokens": None,
}


def sampling_defaults(folder: Path) -> tuple[dict[str, float | int], list[str]]:
    """Read the sampling fields of a checkpoint.

    Args:
        folder: In Hugging Face format.

    Returns:
        The fields, `FOR_SMALL_MODELS` where it names none, and a line for each value that is not legal here
        and for what is not read. `do_sample: false` is temperature 0; without a temperature it is 1, as for
        transformers. Where there is no generation_config.json, config.json may hold them.
    """
    path = folder / "generation_config.json"
    try:
        is_old = not os.path.lexists(path)
        path = folder / "config.json" if is_old else path
        config: Mapping[str, Any] = read_json_if_any(path)
    except UnreadableFile as error:
        return dict(FOR_SMALL_MODELS), [str(error)]
    given = {name: config[name] for name in _FIELDS if config.get(name) is not None}
    if is_old:
        given = {name: value for name, value in given.items() if value != _UNSAID.get(name)}
    elif config.get("do_sample") is False:
        given["temperature"] = 0
    wrong = [name for name, value in given.items() if SAMPLING[name].problem(value)]
    lines = [f"{path}: {name} {SAMPLING[name].problem(given[name])}; it is left out" for name in wrong]
    unread = [name for name, neutral in _UNREAD.items() if config.get(name) not in (None, neutral)]
    if unread:
        lines.append(f"{path}: not used, though it changes what transformers writes: {', '.join(unread)}")
    legal = {name: value for name, value in given.items() if name not in wrong}
    return ({"temperature": 1, **legal} if legal else dict(FOR_SMALL_MODELS)), lines


def with_sampling(tasks: Mapping[str, Task], defaults: Mapping[str, float | int]) -> dict[str, Task]:
    """Give tasks of kind generate that do not say how tokens are drawn the checkpoint's defaults."""
    return {
        name: task
        if task.kind != "generate" or any(field in task.sampling for field in _DRAW)
        else replace(task, sampling={**defaults, **task.sampling})
        for name, task in tasks.items()
    }
