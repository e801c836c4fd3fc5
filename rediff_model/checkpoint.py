"""Checkpoint folders: found or downloaded, read strictly, written atomically.

A folder holds `config.json`, the tokenizer's files, and weights in safetensors under the published
tensor names, as `model.safetensors` or as shards with `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rediff_model.config import ModelConfig
from rediff_model.files.atomic import replacing_folder
from rediff_model.network.proxies import ProxyError, proxy_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)
DOWNLOADS = (CONFIG, "*.safetensors", INDEX, "generation_config.json", *TOKENIZER_PATTERNS)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
DEFAULT_SHARD_BYTES = 5_000_000_000

SHIPPED = Path(__file__).parent / "checkpoints"
"""The checkpoints that come with the package, a folder each."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SIGLIP = "model.vision_tower.vision_tower.vision_model."
_COMPUTED = re.compile(
    r"(?:.*\.)?(?:rotary_emb\.(?:original_)?inv_freq|rotary_emb\.(?:cos|sin)_cached)"
)
"""Buffers of older libraries, which are computed from the configuration."""
_SIGLIP_LAYER = re.compile(re.escape(_SIGLIP) + r"encoder\.layers\.(\d+)\.")


logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message, one line, names the file or tensor."""


def resolve(path_or_hub_id: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a path, or the name of one that comes with the package.

    A hub id (`owner/name`) is downloaded, or found in the cache.

    Raises:
        CheckpointError: neither a folder nor a repository that can be had.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.is_file():
        if any(path.match(pattern) for pattern in PICKLES):
            raise CheckpointError(f"{path} is a pickle file; only safetensors are read")
        raise CheckpointError(f"{path} is a file, not a checkpoint folder")
    shipped = {folder.name: folder for folder in sorted(SHIPPED.iterdir()) if folder.is_dir()}
    if str(path_or_hub_id) in shipped:
        return shipped[str(path_or_hub_id)]
    if not _HUB_ID.fullmatch(str(path_or_hub_id)):
        raise CheckpointError(
            f"no checkpoint folder at {path}, and the package has {', '.join(shipped)}"
        )
    # Imported here, so that a local checkpoint does not wait for it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError

    wanted = f"{path_or_hub_id}" + (f" at revision {revision}" if revision else "")
    way = ""
    try:
        # Its client raises for some proxies what says nothing about them.
        if not HF_HUB_OFFLINE and (proxy := proxy_of(ENDPOINT)) is not None:
            way = f" through {proxy}"
        folder = snapshot_download(
            str(path_or_hub_id), revision=revision, allow_patterns=list(DOWNLOADS)
        )
    except (OSError, HFValidationError, ProxyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"no folder {wanted}, and it cannot be had from the hub{way}: {reason}"
        ) from error
    return Path(folder)


def read_config(path: str | Path) -> ModelConfig:
    """The configuration in a checkpoint folder.

    Raises:
        CheckpointError: no such folder, or no config.json in it.
        ConfigError: config.json cannot be used.
    """
    folder = _folder(path)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}")
    return ModelConfig.from_json(folder / CONFIG)


def load_weights(
    module: nn.Module,
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Fill every parameter and persistent buffer of `module` from a checkpoint folder.

    Tensor by tensor from the mapped file to device and dtype (None keeps the file's; integers
    always keep theirs), so that beside the module's own tensors at most one is in memory. The
    module may be on the meta device. Tied parameters stay tied and are stored once. The parts of
    a SigLIP tower that this architecture drops may be in the file, and so may rotary frequencies,
    which are logged; anything else that the module lacks may not.

    Raises:
        CheckpointError: a shard, a tensor or the index is missing, extra, broken or misshapen.
    """
    folder = _folder(path)
    homes = _homes(module)
    pending = dict(homes)
    dropped = _DroppedParts(homes)
    computed: list[str] = []
    for shard, name, stored in _stored_tensors(folder):
        if name not in pending:
            if dropped.holds(name):
                continue
            if _COMPUTED.fullmatch(name):
                computed.append(name)
                continue
            fault = "appears twice" if name in homes else "is not part of the model"
            raise CheckpointError(f"tensor {name} in {shard} {fault}")
        places = pending.pop(name)
        old = _get(module, places[0])
        if tuple(stored.shape) != tuple(old.shape):
            raise CheckpointError(
                f"tensor {name} in {shard} has shape {list(stored.shape)}, "
                f"the model needs {list(old.shape)}"
            )
        if stored.is_floating_point() != old.is_floating_point():
            raise CheckpointError(f"tensor {name} in {shard} is {stored.dtype}, not {old.dtype}")
        _fill(module, places, stored, torch.device(device), dtype)
    if pending:
        more = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
        raise CheckpointError(f"{folder} lacks tensor {min(pending)}{more}")
    if computed:
        logger.warning("%s: left out %s (%d tensors)", folder, computed[0], len(computed))


def save(
    model: nn.Module,
    config: ModelConfig,
    tokenizer_folder: str | Path | None,
    out: str | Path,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a checkpoint folder at once: readers see the old one, or the whole new one.

    `tokenizer_folder` is where the tokenizer's files are copied from. A shard exceeds
    `max_shard_bytes` only if a single tensor does.

    Raises:
        CheckpointError: `out` exists and is no checkpoint folder.
    """
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and ((out / CONFIG).is_file() or not any(out.iterdir()))):
        raise CheckpointError(f"{out} exists and is no checkpoint folder")
    with replacing_folder(out) as fresh:
        text = json.dumps(config.to_json(), indent=2) + "\n"
        (fresh / CONFIG).write_text(text, encoding="utf-8")
        for pattern in TOKENIZER_PATTERNS if tokenizer_folder is not None else ():
            for file in sorted(Path(tokenizer_folder or "").glob(pattern)):
                shutil.copyfile(file, fresh / file.name)
        _write_weights(model, fresh, max_shard_bytes)
        for weights in fresh.glob("*.safetensors"):
            # safetensors writes files that only their owner may read.
            weights.chmod((fresh / CONFIG).stat().st_mode)


class _DroppedParts:
    """The parts of a published SigLIP tower that the architecture leaves out.

    Its features come from the last layer but one, so the last layer and the pooling head are
    not built; old files also hold the position ids, which are only counted.
    """

    def __init__(self, homes: Mapping[str, object]) -> None:
        layers = [int(match[1]) for match in map(_SIGLIP_LAYER.match, homes) if match]
        self.prefixes: tuple[str, ...] = ()
        if layers:
            last = f"{_SIGLIP}encoder.layers.{max(layers) + 1}."
            self.prefixes = (last, f"{_SIGLIP}head.", f"{_SIGLIP}embeddings.position_ids")

    def holds(self, name: str) -> bool:
        return name.startswith(self.prefixes) if self.prefixes else False


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at {folder}")
    return folder


def _stored_tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """File, name and mapped tensor of everything stored in a folder."""
    for shard, expected in _shards(folder):
        try:
            with safe_open(shard, framework="pt", device="cpu") as file:
                names = set(file.keys())
                if expected is not None and (missing := expected - names):
                    raise CheckpointError(f"{shard} lacks tensor {min(missing)} of the index")
                for name in sorted(names):
                    yield shard, name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{shard} {_fault(shard, error)}") from error


def _fault(shard: Path, error: Exception) -> str:
    """What is wrong with a weight file that safetensors cannot read."""
    try:
        with shard.open("rb") as stream:
            head = stream.read(32)
    except OSError as reason:
        return f"cannot be read: {reason.strerror}"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the weights: git lfs pull"
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "is a pickle file; only safetensors are read"
    return f"cannot be read: {error}"


def _shards(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """The weight files of a folder, with the tensors that the index promises of each."""
    if (folder / WEIGHTS).is_file():
        return [(folder / WEIGHTS, None)]
    if not (folder / INDEX).is_file():
        pickles = sorted(file for pattern in PICKLES for file in folder.glob(pattern))
        if pickles:
            raise CheckpointError(f"{pickles[0]} is a pickle file; only safetensors are read")
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    shards: dict[str, set[str]] = {}
    for name, shard in _weight_map(folder / INDEX).items():
        shards.setdefault(shard, set()).add(name)
    for shard in shards:
        if not (folder / shard).is_file():
            raise CheckpointError(f"shard {folder / shard} is missing")
    return [(folder / shard, names) for shard, names in sorted(shards.items())]


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor names and the files beside `index` that hold them."""
    try:
        whole: Any = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{index} is no shard index: {error}") from None
    weight_map = whole.get("weight_map") if isinstance(whole, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} is no shard index: it has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{index} is no shard index: {name} is in {shard!r}, which is no file beside it"
            )
    return weight_map


def _homes(module: nn.Module) -> dict[str, list[str]]:
    """Each stored name with all names of the tensor in `module`; several when tied."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in by_tensor.values()}


def _get(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor


@torch.no_grad()
def _fill(
    module: nn.Module,
    places: list[str],
    stored: Tensor,
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    """Copy a stored tensor to its places, into the memory that is there if it fits."""
    old = _get(module, places[0])
    if dtype is None or not stored.is_floating_point():
        dtype = stored.dtype
    if (old.device, old.dtype) == (device, dtype):
        old.copy_(stored)
        return
    fresh = torch.empty(stored.shape, dtype=dtype, device=device)
    fresh.copy_(stored)
    if isinstance(old, torch.nn.Parameter):
        fresh = torch.nn.Parameter(fresh, requires_grad=old.requires_grad)
    for place in places:
        owner, _, leaf = place.rpartition(".")
        setattr(module.get_submodule(owner), leaf, fresh)


def _write_weights(model: nn.Module, folder: Path, max_shard_bytes: int) -> None:
    """One file if it fits, else shards and their index."""
    state = model.state_dict(keep_vars=True)
    tensors = {name: state[name].detach() for name in _homes(model)}
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        ready = {name: tensor.cpu().contiguous() for name, tensor in shard.items()}
        save_file(ready, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
