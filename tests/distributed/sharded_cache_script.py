"""Fits sharded modules in two processes with and without the cache, and saves what every rank computes and decides.

Usage: sharded_cache_script.py OUT CASE [CASE ...]
"""

import sys
import warnings
from pathlib import Path

import torch
from distributed_cases import EPOCHS, Module, gradual, whole
from distributed_processes import run_ranks
from fsdp2_script import strategy
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel import SequenceParallel as OverPositions
from torch.utils.data import DataLoader, TensorDataset
from toys import StatefulLoader, trainer

from lightning_freeze import FrozenPrefixCache, LayerFreezing
from lightning_freeze.cache.prefix import break_even

# Whether reading pays in so small a model depends on the machine.
break_even.SLOWER = float("inf")

COUNT = 14  # samples of one rank: three batches of four, and one of two


class Recorded(Module):
    """Records its losses; the last batch is smaller, and smaller again on one rank."""

    replicas = 2
    rank = property(lambda self: self.global_rank if self.replicas == 2 else 0)

    def __init__(self) -> None:
        super().__init__()
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.detach().clone())
        if self.trainer.global_step == getattr(self, "fails_at", -1):
            raise ArithmeticError("as a user's code may")
        return loss

    def validation_step(self, batch, batch_idx):
        self.losses.append(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]).detach().clone())

    def on_validation_epoch_end(self) -> None: ...

    def samples(self, seed):
        generator = torch.Generator().manual_seed(seed + self.rank)
        tokens = torch.randint(0, 16, (COUNT - self.rank, 5), generator=generator)
        return TensorDataset(tokens, tokens.sum(1) % 2)

    def train_dataloader(self):
        batches = StatefulLoader()
        batches.batches = list(DataLoader(self.samples(1), 4))
        return batches

    def val_dataloader(self):
        return DataLoader(self.samples(1 if self.rank else 5), 4)  # one rank validates what it trains on


class Sharded(Recorded):
    policy = MixedPrecisionPolicy()
    prefetches = False

    def configure_model(self):
        if isinstance(self.classifier.weight, DTensor):
            return
        mesh = self.device_mesh["data_parallel"]
        blocks = list(self.encoder.layers)
        for part in (*blocks, self.encoder.embeddings, self):
            fully_shard(part, mesh=mesh, mp_policy=self.policy)
        if self.prefetches:
            for part, following in zip([self.encoder.embeddings, *blocks], [*blocks, None], strict=True):
                part.set_modules_to_forward_prefetch([following] if following is not None else [])


class Prefetching(Sharded):
    prefetches = True


class Mixed(Sharded):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def __init__(self) -> None:
        super().__init__()
        self.float()


class OneRankMisses(Sharded):
    """One rank sees new samples in the second epoch."""

    def on_train_epoch_start(self):
        if self.global_rank == 1 and self.current_epoch == 1:
            loader = self.trainer.train_dataloader
            loader.batches[1] = [(loader.batches[1][0] + 1) % 16, loader.batches[1][1]]


class TensorParallel(Recorded):
    """Each block's linear layer is split over the ranks; hidden states are whole on all of them."""

    replicas = 1

    def configure_model(self):
        if isinstance(self.encoder.layers[0].linear.weight, DTensor):
            return
        mesh = self.device_mesh["tensor_parallel"]
        for block in self.encoder.layers:
            parallelize_module(block, mesh, {"linear": ColwiseParallel(output_layouts=Replicate())})


class EmbeddingsToo(TensorParallel):
    """The embeddings are split over the ranks too, as in the plans for Llama."""

    def configure_model(self):
        if not isinstance(self.encoder.embeddings.weight, DTensor):
            plan = RowwiseParallel(input_layouts=Replicate())
            parallelize_module(self.encoder, self.device_mesh["tensor_parallel"], {"embeddings": plan})
        super().configure_model()


class SequenceParallel(TensorParallel):
    """Each rank has half of the positions between blocks, in plain tensors."""

    def samples(self, seed):
        tokens = super().samples(seed).tensors[0][:, :4]
        return TensorDataset(tokens, tokens.sum(1) % 2)

    def configure_model(self):
        if isinstance(self.encoder.embeddings.weight, DTensor):
            return
        mesh = self.device_mesh["tensor_parallel"]
        plan = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        parallelize_module(self.encoder, mesh, {"embeddings": plan})


class Distributed(SequenceParallel):
    """Each rank has half of the positions between blocks, in ``DTensor``s."""

    def configure_model(self):
        if isinstance(self.encoder.embeddings.weight, DTensor):
            return
        mesh = self.device_mesh["tensor_parallel"]
        whole_to_parts = {"input_layouts": Replicate(), "output_layouts": Shard(1), "use_local_output": False}
        parallelize_module(self.encoder, mesh, {"embeddings": RowwiseParallel(**whole_to_parts)})
        for block in self.encoder.layers:
            linear = ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(1), use_local_output=False)
            parallelize_module(block, mesh, {"norm": OverPositions(), "linear": linear})

    def forward(self, tokens):
        return self.classifier(self.encoder(tokens).full_tensor())


class Watch(Callback):
    """Reads what the cache has decided in each batch."""

    def __init__(self, cache) -> None:
        self.cache = cache
        self.decisions = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.cache is not None:
            self.decisions += [str(decision) for decision in self.cache.explain().values()]


def static():
    return LayerFreezing("embeddings,:2", verbose=False)


CASES = {
    "static": (static, Sharded),
    "gradual": (lambda: gradual(layers_per_phase=2), Sharded),
    "prefetching": (static, Prefetching),
    "mixed": (static, Mixed),
    "one rank misses": (static, OneRankMisses),
    "tensor parallel": (static, TensorParallel),
    "tensor parallel, gradual": (lambda: gradual(layers_per_phase=2), TensorParallel),
    "tensor parallel, embeddings too": (static, EmbeddingsToo),
}
REFUSED = {"sequence parallel": (static, SequenceParallel), "distributed tensors": (static, Distributed)}
RESUMED = ("static", "gradual", "tensor parallel, gradual")
ALL = {**CASES, **REFUSED}


def fit(path, name, cache, ckpt_path=None, fails_at=-1, **options):
    seed_everything(0, verbose=False)
    callbacks, kind = ALL[name]
    watch = Watch(cache)
    the_trainer = trainer(
        callbacks(),
        *([cache] if cache is not None else []),
        watch,
        *options.pop("callbacks", []),
        use_distributed_sampler=False,
        **{"devices": 2, "max_epochs": EPOCHS, "strategy": strategy(data_parallel_size=kind.replicas), **options},
    )
    module = kind()
    module.fails_at = fails_at
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            the_trainer.fit(module, ckpt_path=ckpt_path)
        except ArithmeticError:
            assert fails_at >= 0
    content = {
        "weights": whole(module) if fails_at < 0 else {},
        "losses": module.losses,
        "decisions": watch.decisions,
        "hits": 0 if cache is None else sum(t.tally.hits for t in cache._towers),
        "warnings": [str(w.message) for w in caught if "FrozenPrefixCache" in str(w.message)],
    }
    torch.save(content, f"{path}-{the_trainer.global_rank}.pt")


def main(out, *names):
    def together(rank):
        for name in names:
            folder = Path(out, name, "cache")
            options = {"val_check_interval": 2}
            checkpoints = ModelCheckpoint(f"{out}/{name}", filename="{step}", save_top_k=-1, every_n_train_steps=6)
            fit(f"{out}/{name} without", name, None, **options)
            saving = {"enable_checkpointing": True, "callbacks": [checkpoints]}
            fit(f"{out}/{name} with", name, FrozenPrefixCache(folder, verbose=False), **options, **saving)
            fit(f"{out}/{name} again", name, FrozenPrefixCache(folder, verbose=False), **options)
            if name in RESUMED:
                fit(f"{out}/{name} failed", name, FrozenPrefixCache(verbose=False), fails_at=7, **options)
                saved = f"{out}/{name}/step=6.ckpt"
                fit(f"{out}/{name} resumed", name, FrozenPrefixCache(folder, verbose=False), saved, **options)

    run_ranks(together)


if __name__ == "__main__":
    main(*sys.argv[1:])
