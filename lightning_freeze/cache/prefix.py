"""One tower of a running fit: looks up its frozen prefix at each forward pass, and skips what is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache import layout, selfcheck
from lightning_freeze.cache.keys import CallReader, Unsupported
from lightning_freeze.cache.obstacles import Generation, Hook, Obstacles, can_prove, recomputes
from lightning_freeze.cache.passes import Known, Pass, Tally
from lightning_freeze.cache.prefix_entries import PrefixEntries, synchronize
from lightning_freeze.cache.rehearsal import Rehearsal, check_randomness, compare
from lightning_freeze.cache.skip import BlockForm, Detour, Nothing, Watch, run_prefix
from lightning_freeze.cache.towers import CachedTower, Structure
from lightning_freeze.layers.backward_watch import mark_probe

#: Passes in a row, each of a prefix that has not been seen before, until it is given up.
_PATIENCE = 8


class FrozenPrefix:
    """Looks up, skips, fills and checks the frozen prefix of one tower.

    Args:
        tower: The tower.
        entries: The hidden states that are stored.
        verify: How many batches with hits are compared with a real forward pass for each identity of the prefix.
        origins: Shared by the towers of one module: the keys that the outputs of the towers were computed from.
        on_off: Called when the tower is switched off, with the reason, and with whether that is a fault rather than a
            choice.

    Attributes:
        off: Why it is switched off, ``None`` while it is not.
        tally: What it has done.
        boundary: Number of blocks in the frozen prefix at the latest pass.
        floor: Number of blocks to take as frozen at least.
        current: What is known about the prefix of the latest pass.
        calls: Number of forward passes seen.
        batch: Number of samples in the latest pass.
        proving: Whether the running step shows whether padding is read; its gradients reach further down than usual.
        is_outdated: Whether modules or parameters of the tower have been replaced, so that it has to be found anew.
    """

    def __init__(
        self,
        tower: CachedTower,
        entries: PrefixEntries,
        verify: int,
        origins: list[FrozenPrefix],
        on_off: Callable[[FrozenPrefix, str, bool], None],
    ) -> None:
        self.tower = tower
        self.off: str | None = None
        self.tally = Tally()
        self.entries = entries
        self.current: Known | None = None
        self.calls = 0
        self.batch = 0
        self.proving = False
        self.is_outdated = False
        self.boundary = 0
        self.floor = 0
        self._verify = verify
        self._towers = origins
        self._on_off = on_off
        self._reader = CallReader(tower.entry)
        self._forms: list[BlockForm] | None = None
        self._pass: Pass | None = None
        self._busy = False
        self._outputs: tuple[list[tuple[int, int]], list[bytes], Any] | None = None
        self._strange = 0
        self._nothing = Nothing()
        self._generation = Generation(tower.entry, self._reader.names)
        self._obstacles = Obstacles(tower)
        self._structure = Structure(tower.entry)
        entry = tower.entry
        self._handles = [
            entry.register_forward_pre_hook(Hook(self._before), with_kwargs=True),
            entry.register_forward_hook(Hook(self._after), with_kwargs=True, always_call=True, prepend=True),
        ]

    def close(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()
        self._end_pass()
        self._outputs = None

    def look_again(self, thorough: bool) -> None:
        """Notice at the next pass if the weights have changed in a way that left no trace."""
        self.entries.look_again(thorough)

    def end_step(self) -> None:
        """The training step is over, its backward pass included."""
        self.proving = False
        self._outputs = None

    def switch_off(self, reason: str, is_fault: bool = True) -> None:
        """Do nothing from now on."""
        if self.off is None:
            self.off = reason
            self._on_off(self, reason, is_fault)

    def origin(self, tensor: Tensor) -> Sequence[bytes] | None:
        """The keys of the samples that an output of this tower was computed from, if the tower is frozen as a whole."""
        if self._outputs is None or (id(tensor), _version(tensor)) not in self._outputs[0]:
            return None
        return self._outputs[1]

    # ------------------------------------------------------------------------------------------- before the pass

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.off is not None or self._busy:
            return
        self._end_pass()
        self._outputs = None
        self.calls += 1
        self._busy = True
        try:
            self._pass = self._plan(args, kwargs)
        except Exception as reason:
            self._end_pass()
            self.switch_off(_because(reason))
        finally:
            self._busy = False

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass | None:
        began = time.perf_counter()
        self.is_outdated = self.is_outdated or not self._structure.is_same()
        self.boundary = max(self.tower.boundary(), self.floor)
        if self.is_outdated or not self.boundary or self._generation.goes_on(args, kwargs):
            return None
        mode = self._obstacles.look(self.boundary, self._reader.named(args, kwargs))
        if self._obstacles.is_watched:
            return None
        call = self._reader.read(args, kwargs)
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in call.leaves.values()):
            if any(tower.proving for tower in self._towers):
                return None
            raise Unsupported("something that trains, or is made to require grad, feeds into its frozen layers")
        namespace, known = self.entries.identify(self.boundary, mode, call)
        self.current, self.batch = known, call.size
        self._strange = 0 if known.checked else self._strange + 1
        if self._strange > _PATIENCE:
            raise Unsupported("its frozen layers change from one step to the next")
        padded = call.has_padding
        # Only where a backward pass will follow can be seen whether anything reads the positions of padding.
        proves = padded and known.trimmed and can_prove() and not recomputes()
        trimmed = known.trimmed and (not padded or proves)
        keys = call.keys(trimmed, self._origin_of)
        this = Pass(call, known, namespace, keys, [None] * call.size, trimmed, proves, began=began)
        this.rows = self.entries.read(this, namespace, known)
        this.rehearses = not known.checked or (known.alone and call.size > 1) or (proves and not known.padded)
        hits = call.size - len(this.missing)
        known.proofs += proves
        if recomputes():
            # The backward pass of activation checkpointing repeats a forward pass, and must find the same again.
            if not known.checked or this.missing:
                return None
            self._skip(this)
        elif this.rehearses or (hits and known.verified < self._verify) or (proves and not known.unread):
            self._run(this)
        elif not hits:
            self._skip_lower(this, mode)
        else:
            this.proves = proves and known.is_due
            self._skip(this)
        return this

    def _origin_of(self, tensor: Tensor) -> Sequence[bytes] | None:
        return next((keys for tower in self._towers if (keys := tower.origin(tensor)) is not None), None)

    def _run(self, this: Pass) -> None:
        """Let the prefix run for real, and take what it computes."""
        device = this.device
        this.start = selfcheck.Randomness(device)
        wanted = self.entries.boundaries(self.boundary)
        stems = self.tower.stems if this.rehearses else ()
        this.watch = Watch(self.tower, wanted, self._forms, lambda b, hidden: self._take(this, b, hidden), stems)
        if not this.known.checked:
            synchronize(device)
        this.began = time.perf_counter()

    def _take(self, this: Pass, boundary: int, hidden: Tensor) -> Tensor | None:
        # What comes above may change it in place.
        this.taken[boundary] = hidden if hidden.is_nested else hidden.detach().clone()
        if boundary != this.known.boundary:
            return None
        this.fed = hidden.requires_grad
        if not this.known.checked:
            synchronize(hidden.device)
        this.seconds = time.perf_counter() - this.began
        this.drew = this.start is not None and this.start.drawn_since()
        is_laid_out = hidden.dim() > 2 and hidden.shape[:2] == (this.call.size, this.call.length)
        return self._probe(this, hidden) if this.proves and is_laid_out and not hidden.requires_grad else None

    def _probe(self, this: Pass, hidden: Tensor) -> Tensor:
        """Hidden states that learn from the backward pass whether anything reads the positions of padding."""
        self.proving = True
        leaf = hidden.detach().requires_grad_()
        mark_probe(leaf)
        leaf.register_hook(this.learn_from)
        with torch.enable_grad():
            return leaf.clone()  # no leaf, so that it may be changed in place

    def _skip_lower(self, this: Pass, mode: str) -> None:
        """Nothing is stored at the boundary: start at a lower one where an earlier phase has left everything."""
        for lower in sorted((b for b in self.entries.filled if b < self.boundary), reverse=True):
            namespace, known = self.entries.identify(lower, mode, this.call)
            if not known.checked or (this.trimmed and not known.trimmed):
                continue
            rows = self.entries.read(this, namespace, known)
            found = [row for row in rows if row is not None]
            if len(found) == len(rows):
                self._run(this)
                self._detour(this, known, found)
                return
        self._run(this)

    def _skip(self, this: Pass) -> None:
        """Skip the prefix, computing first what is missing."""
        missing = this.missing
        this.start = selfcheck.Randomness(this.device)
        if missing:
            some = this.call.only(missing)
            if some is None or self._forms is None:
                self._run(this)
                return
            wanted = self.entries.boundaries(self.boundary)
            with selfcheck.undrawn(this.device) if this.known.draws else nullcontext():
                computed = run_prefix(self.tower, self._forms, wanted, some)
            self.entries.put(this, computed, missing, whole=False, is_eval=self._obstacles.are_quiet)
            spans = [this.spans[i] for i in missing] if this.spans else None
            fresh = layout.pack(computed[self.boundary], spans, self.entries.dtype)
            for number, row in zip(missing, fresh, strict=True):
                this.rows[number] = row
        self.tally.samples += this.call.size
        self.tally.hits += this.call.size - len(missing)
        self._detour(this, this.known, [row for row in this.rows if row is not None], keeps=True)
        reading = 0.0 if missing else time.perf_counter() - this.began
        self.tally.saved += (this.call.size - len(missing)) * this.known.seconds - reading
        if not missing and (slow := self.entries.slowness(this.known, reading, this.call.size)) is not None:
            self.switch_off(slow, is_fault=False)  # from the next pass on

    def _detour(self, this: Pass, known: Known, rows: Sequence[Tensor], keeps: bool = False) -> None:
        assert self._forms is not None
        device = this.device
        hidden = layout.lay_out(rows, this.spans, this.call.length, known.dtype, device, known.order)
        if keeps:
            self.entries.keep(this, hidden)
            if this.proves:
                hidden = self._probe(this, hidden)
        this.detour = Detour(self.tower, self._forms, known.boundary, hidden, known.stems, self._nothing)

    # -------------------------------------------------------------------------------------------- after the pass

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        this = self._pass
        if this is None or self._busy:
            return None
        self._end_pass()
        if output is None:
            return None
        self._busy = True
        if this.detour is not None and (not this.detour.reached or self._is_read(this, output)):
            try:
                return self._run_again(this)  # what goes wrong in there is the module's own
            finally:
                self._busy = False
        try:
            if this.watch is not None:
                self._finish_run(this, output)
            if this.detour is not None:
                self._generation.note(output, this.call.args, this.call.kwargs)
            self._remember_output(this, output)
        except Exception as reason:
            self.switch_off(_because(reason))
        finally:
            self._busy = False
        return None

    def _end_pass(self) -> None:
        this, self._pass = self._pass, None
        if this is not None:
            for stack in (this.detour, this.watch):
                if stack is not None:
                    stack.close()

    def _is_read(self, this: Pass, output: Any) -> bool:
        """Whether the NaN that skipped layers return has come to what the tower returns."""
        return not this.known.is_nan and selfcheck.has_nan(output)

    def _run_again(self, this: Pass) -> Any:
        """Something was wrong with a pass that skipped: what it should have returned, as if it had not."""
        assert this.start is not None and this.detour is not None
        this.start.restore()
        output = self.tower.entry.forward(*this.call.args, **this.call.kwargs)
        if not this.detour.reached:
            self.switch_off("its blocks were not run in the order in which they ran before")
        elif selfcheck.has_nan(output):
            this.known.is_nan = True
        else:
            self.switch_off("a layer above the frozen ones reads what they compute on the way")
        return output

    def _finish_run(self, this: Pass, output: Any) -> None:
        call, known, watch = this.call, this.known, this.watch
        hidden = this.taken.get(known.boundary)
        assert watch is not None
        if not known.checked and any(map(_drops_layers, self.tower.entry.modules())):
            raise Unsupported("its layers are dropped at random (layerdrop)")
        if watch.problem is not None:
            raise Unsupported(watch.problem)
        if hidden is None or None in watch.forms:
            raise Unsupported(f"{self.tower.entry_name or 'the module'} does not run its blocks in every call")
        if this.fed:
            raise Unsupported("something that trains, or is made to require grad, feeds into its frozen layers")
        if hidden.is_nested or hidden.dim() < 2 or hidden.shape[0] != call.size:
            raise Unsupported("its hidden states do not have the batch as their first dimension")
        if self._forms is None:
            self._forms = [form for form in watch.forms if form is not None]
        known.positions = bool(call.length) and hidden.dim() > 2 and hidden.shape[1] == call.length
        known.tail = tuple(hidden.shape[2:] if known.positions else hidden.shape[1:])
        known.dtype, known.order = hidden.dtype, layout.order_of(hidden)
        if call.length and not known.positions:
            known.trimmed = False
        self.tally.samples += call.size
        known.is_nan = known.is_nan or selfcheck.has_nan(output)
        if this.drew and not known.draws:
            check_randomness(self.tower, self._forms, this, hidden, self._obstacles.modules)
        if this.detour is None:
            compare(this, hidden, self.entries.dtype or hidden.dtype)
            if this.rehearses:
                Rehearsal(self.tower, self._forms, this, hidden).run(output)
        if this.trimmed and not known.trimmed and call.has_padding:
            this.trimmed = False
            this.keys = call.keys(False, self._origin_of)
            this.rows = [None] * call.size
        if this.detour is None:
            self.entries.end_pass(this)
        self.entries.measure(this, hidden)
        self.entries.put(this, this.taken, this.missing, whole=True, is_eval=self._obstacles.are_quiet)
        if not known.checked:
            slow = self.entries.begin(this, hidden, self._origin_of)
            if slow is not None:
                self.switch_off(slow, is_fault=False)

    def _remember_output(self, this: Pass, output: Any) -> None:
        """Let other towers know what this one's output was computed from, if all of this one is frozen."""
        entry = self.tower.entry
        if len(self._towers) == 1:
            return
        below = {id(p) for step in self.tower.steps[: this.known.boundary + 1] for p in step}
        if any(id(p) not in below for p in entry.parameters()) or any(m.training for m in entry.modules()):
            return
        tensors = list(selfcheck.tensors_in(output))
        name = this.namespace.hex().encode()
        self._outputs = ([(id(t), _version(t)) for t in tensors], [name + key for key in this.keys], tensors)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _because(reason: Exception) -> str:
    """An error as the end of a sentence: nothing that goes wrong here may end the run."""
    if isinstance(reason, Unsupported):
        return str(reason)
    return f"{type(reason).__name__} while its frozen layers were looked at: {' '.join(str(reason).split())[:300]}"


def _drops_layers(module: nn.Module) -> bool:
    own = getattr(module, "layerdrop", 0) or getattr(getattr(module, "config", None), "layerdrop", 0)
    return module.training and bool(own)
