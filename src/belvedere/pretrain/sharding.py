"""Sharding: every process holds a part of the transformer blocks, and with it of their optimiser state and teacher.

"PyTorch FSDP: experiences on scaling fully sharded data parallel", Zhao et al., VLDB 2023, arXiv:2304.11277. A block's
weights are gathered for the time of its call, forward and backward, and its gradient comes back as the own part of the
mean over processes (torch's `fully_shard`). All else - patch embedding, norms, heads, tasks - is whole everywhere and
under DDP. Whatever asks a sharded network, or what its tensors are as a whole, all processes must do together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from belvedere.backbones.contract import Backbone
from belvedere.config import Config
from belvedere.distributed import leads, world_size
from belvedere.errors import UserError
from belvedere.views.policy import ViewPolicy

# The oldest that the tests have run it with; 2.6 cannot do it on a CPU.
OLDEST_TORCH = "2.13"


def check_shardable(config: Config, backbone: Backbone, policy: ViewPolicy) -> None:
    """Refuse what sharding does not go with, in one process too, so that it is known before there are several.

    Raises:
        UserError: saying why.
    """
    why = ""
    if torch.__version__ < OLDEST_TORCH:
        why = f"needs torch {OLDEST_TORCH} or newer, this is {torch.__version__}"
    elif config.train.compile:
        why = "compiled code keeps no weights that come and go; choose it or train.compile"
    elif not backbone.shardable:
        why = f"backbone {backbone.architecture} has no transformer blocks to share out; leave it away"
    elif policy.regularises:
        why = f"views.policy={config.views.policy} sends gradients through copies of whole weights; leave it away"
    if why:
        raise UserError(f"train.shard=true: {why}")


def note_on_shards(device: torch.device) -> str:
    """What a user who asked for sharding is told; nothing where it has been tried."""
    if world_size() == 1:
        return "train.shard=true: this one process holds the whole network; several share it (--devices 2, or torchrun)"
    if device.type == "cuda":
        return "train.shard=true: has run on CPU processes only, no two CUDA devices have run it yet"
    return ""


def shard(trained: nn.Module, backbones: Iterable[Backbone], device: torch.device) -> None:
    """Leave each process its part of the backbones' blocks, and have DDP around `trained` pass over them.

    To be called by all processes, with equal weights, before there is an optimiser.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for backbone in backbones:
        for block in backbone.shardable:
            # Also after the last forward, since the EMA and the optimiser move the parts.
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    parts = [name for name, p in trained.named_parameters() if isinstance(p, DTensor)]
    ddp: Any = DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(trained, parts)


def whole(state: Any) -> Any:
    """A state of nested dictionaries with whole tensors in place of sharded ones.

    All processes call it; the whole tensors are on the CPU of the leading one, which writes them, and None elsewhere.
    """
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, DTensor):
        tensor = state.full_tensor()
        return tensor.cpu() if leads() else None
    return state


def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a module, of which this process may hold parts.

    Raises:
        RuntimeError: when a tensor does not match.
    """
    own = module.state_dict()
    module.load_state_dict({name: _part(x, own[name]) if name in own else x for name, x in state.items()})


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Put an optimiser's state of whole tensors into one of the same parameters, of which some may be parts.

    Groups stay as they are: the schedule sets their numbers at each step, and parts stand in groups of their own.

    Raises:
        ValueError: when the parameters are more or fewer, or of other shapes.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = sum(len(group["params"]) for group in state["param_groups"])
    if saved != len(parameters):
        raise ValueError(f"the optimiser has {len(parameters)} parameters, in the checkpoint {saved}")
    found = {
        number: {name: _part(x, p) for name, x in state["state"][number].items()}
        for number, p in enumerate(parameters)
        if number in state["state"]
    }
    for number, p in enumerate(parameters):
        for name, x in found.get(number, {}).items():
            if isinstance(x, Tensor) and x.dim() and x.shape != p.shape:
                raise ValueError(f"the optimiser's {name} {number} is {tuple(x.shape)} and not {tuple(p.shape)}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": found})


def _part(x: Any, like: Any) -> Any:
    """This process' part of a whole tensor that belongs to a sharded one; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(x, Tensor) or x.shape != like.shape:
        return x
    # Every process has read the whole tensor itself.
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
