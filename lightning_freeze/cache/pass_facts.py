"""Gathers what is known of a forward pass of a tower, for the decision what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_freeze.cache.checks.eligibility import Eligibility, Generation, can_check_padding, is_recomputing
from lightning_freeze.cache.checks.few_samples import few_samples_suffice
from lightning_freeze.cache.checks.repeat_limit import RepeatLimit
from lightning_freeze.cache.decision import CallFacts, PrefixFacts
from lightning_freeze.cache.execution import PrefixExecutor
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import Call, CallReader, KeysOf
from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.pass_state import PassState
from lightning_freeze.distributed.sharding import is_sharded


class PassFacts:
    """Gathers facts until one of them decides.

    Args:
        tower: The tower.
        entries: The stored hidden states.
        verify: Number of batches with hits that are compared with a real forward pass, for each identity of the prefix.
        keys_of: As for :meth:`Call.keys`.
    """

    def __init__(self, tower: CachedTower, entries: PrefixEntries, verify: int, keys_of: KeysOf) -> None:
        self._entries = entries
        self._verify = verify
        self._keys_of = keys_of
        self._reader = CallReader(tower.entry)
        self._changes = RepeatLimit()
        self._generation = Generation(tower.entry, self._reader.names)
        self._eligibility = Eligibility(tower)

    def of_call(
        self, boundary: int, args: tuple[Any, ...], kwargs: dict[str, Any], executors: Sequence[PrefixExecutor]
    ) -> tuple[CallFacts, Call | None]:
        """Return the facts of a call; it is read only if none of them decides before that.

        Args:
            boundary: Number of blocks in the frozen prefix, at least 1.
            args: Positional arguments of the call.
            kwargs: Its named arguments.
            executors: Of all towers of the module.

        Raises:
            Unsupported: If the prefix must not be skipped.
        """
        if self._generation.continues(args, kwargs):
            return CallFacts(boundary, continues_generation=True), None
        named = self._reader.named(args, kwargs)
        self._eligibility.check(boundary, named)
        # Keys and values are read in too many ways to find out what would be missing.
        has_observers, returns_keys = self._eligibility.has_observers, named.get("use_cache") is True
        if has_observers or returns_keys:
            return CallFacts(boundary, has_observers=has_observers, returns_keys=returns_keys), None
        call = self._reader.read(args, kwargs)
        if any(map(is_sharded, call.tensors.values())):
            raise Unsupported("its inputs are sharded over the ranks (DTensor)")
        has_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors.values())
        probes_padding = has_gradient and any(executor.is_probing for executor in executors)
        return CallFacts(
            boundary, is_empty=not call.size, has_gradient=has_gradient, probes_padding=probes_padding
        ), call

    def complete_keys(self, args: tuple[Any, ...], kwargs: dict[str, Any], need_weights: Callable[[], None]) -> None:
        """Complete the keys and values that a call continues from; see :meth:`Generation.complete`.

        Args:
            args: Positional arguments of the call.
            kwargs: Its named arguments.
            need_weights: Called before blocks run that were skipped.
        """
        self._generation.complete(args, kwargs, need_weights)

    def identify(self, boundary: int, call: Call, began: float) -> PassState:
        """Identify the prefix of a call, and return the pass that begins with it.

        Args:
            boundary: Number of blocks in the frozen prefix.
            call: The call.
            began: When it began, from ``time.perf_counter``.
        """
        mode = self._eligibility.mode
        namespace, known = self._entries.identify(boundary, mode, call)
        state = PassState(call, known, namespace, mode=mode, began=began)
        state.training_modules = self._eligibility.training_modules
        return state

    def of_prefix(self, state: PassState) -> PrefixFacts:
        """Look the samples of a pass up and return the facts; stops before that if the decision does not need it.

        Args:
            state: The pass.
        """
        call, known = state.call, state.known
        self._changes.record(not known.is_checked)
        is_recomputed, has_grad = is_recomputing(), torch.is_grad_enabled()
        # Only with gradients does it show whether something that trains feeds into the prefix. A pass that a backward
        # pass repeats has gradients where the first one had none.
        is_grad_checked = known.checked_with_grad or not has_grad or is_recomputed
        facts = PrefixFacts(
            call.size,
            keeps_changing=self._changes.is_exceeded,
            changing=self._entries.changing,
            is_checked=known.is_checked,
            conditions_checked=is_grad_checked and state.training_modules <= known.training_modules,
            independence_checked=known.independence_checked,
            has_same_layout=call.has_same_layout(known.per_sample),
            is_recomputed=is_recomputed,
        )
        needs_check = facts.needs_check
        if facts.keeps_changing or not (needs_check or facts.has_same_layout):
            return facts
        # Only a backward pass can show whether anything reads the positions of padding.
        is_padded = call.has_padding
        checks_padding = is_padded and known.trims_padding and can_check_padding() and not is_recomputed
        known.padded_passes += checks_padding
        state.checks_padding = checks_padding
        state.trims_padding = known.trims_padding and (not is_padded or checks_padding)
        state.keys = state.find_keys(self._keys_of)
        state.rows = self._entries.read(state, state.namespace, known)
        found = call.size - len(state.missing)
        facts = facts._replace(
            found=found,
            checks_padding=checks_padding,
            padding_dry_run=known.dry_run_trimmed,
            padding_unread=known.padding_unread,
            is_verified=known.verified >= self._verify,
            few_suffice=needs_check and few_samples_suffice(state),
            mixing=known.mixing,
            is_divisible=known.mixing is None,
            recurs=not has_grad or known.recurs(found, call.size, self._entries.expected_samples),
            size_checked=not self._verify or known.has_checked(call.size),
            has_lower=not found and self._entries.has_lower(known.boundary),
        )
        state.needs_dry_run = facts.needs_dry_run
        return facts

    def remember_generation(self, state: PassState, output: Any) -> None:
        """Remember that the keys and values in an output lack those of the skipped blocks.

        Args:
            state: The pass, which has skipped blocks.
            output: What the tower returned.
        """
        self._generation.remember(output, state.call.args, state.call.kwargs)
