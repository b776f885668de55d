"""Who holds what frozen: the one place that sets ``requires_grad`` and train/eval modes.

Each callback *holds* the parameters that it wants frozen. A parameter is frozen while anybody holds it and gets back
what it was given when the last one lets go. So callbacks combine in any order, a statically frozen layer stays frozen
when a schedule passes over it, and what the user or the model had frozen at construction is never unfrozen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch.nn import Module, Parameter


class Holds:
    """The parameters and modules of one model that are held frozen, by owner.

    Args:
        plainly: Makes a context in which ``requires_grad`` stands as it does when nothing has switched it off in
            passing.
    """

    def __init__(self, plainly: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._plainly = plainly
        self._owned: dict[Hashable, tuple[dict[Parameter, None], dict[Module, None]]] = {}
        self._given: dict[Parameter, bool] = {}
        self._held_modules: dict[Module, None] = {}
        self._trained: set[Module] = set()
        self._stand_ins: dict[Module, Module] = {}

    def hold(self, owner: Hashable, parameters: Iterable[Parameter], modules: Iterable[Module] = ()) -> bool:
        """Replace what ``owner`` holds; returns whether the set of trainable parameters changed.

        Args:
            owner: Whoever asks, told apart by equality.
            parameters: All parameters that the owner wants frozen from now on.
            modules: All modules that the owner wants in eval mode from now on.
        """
        self._owned[owner] = (dict.fromkeys(parameters), dict.fromkeys(modules))
        with self._plainly():
            return self._settle()

    def release(self, owner: Hashable) -> bool:
        """Let go of everything that ``owner`` holds; returns whether the set of trainable parameters changed."""
        self._owned.pop(owner, None)
        with self._plainly():
            return self._settle()

    def holders(self, parameter: Parameter) -> list[Hashable]:
        """The owners that hold a parameter."""
        return [owner for owner, (parameters, _) in self._owned.items() if parameter in parameters]

    def can_train(self, parameter: Parameter, owner: Hashable) -> bool:
        """Whether a parameter would train if ``owner`` alone let go of it."""
        given = self._given.get(parameter, parameter.requires_grad)
        return given and all(holder == owner for holder in self.holders(parameter))

    def given(self, parameter: Parameter) -> bool:
        """Whether a parameter would train if nobody held it."""
        return self._given.get(parameter, parameter.requires_grad)

    def modules(self) -> list[Module]:
        """Every module that anybody wants in eval mode."""
        return list(self._held_modules)

    def intruders(self) -> list[Parameter]:
        """Held parameters that something else has set to ``requires_grad=True``."""
        return [parameter for parameter in self._given if parameter.requires_grad]

    def still(self) -> None:
        """Put every held module in eval mode, remembering which ones were in train mode.

        To be called before each training batch, not only once: a user's own ``train()`` undoes it. (And not before
        training starts, where Lightning warns of modules in eval mode.)
        """
        for module in self._held_modules:
            if module.training:
                self._trained.add(module)
                module.training = False

    def follow(self, stand_ins: Mapping[Module, Module]) -> None:
        """Hold other modules in place of some, which a strategy has replaced in the model (``SyncBatchNorm``)."""
        self._stand_ins.update(stand_ins)
        self._held_modules = {stand_ins.get(m, m): None for m in self._held_modules}
        self._trained = {stand_ins.get(m, m) for m in self._trained}

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Give all parameters the ``requires_grad`` that they were given, for the time being."""
        try:
            for parameter, given in self._given.items():
                parameter.requires_grad_(given)
            yield
        finally:
            for parameter in self._given:
                parameter.requires_grad_(False)

    def _settle(self) -> bool:
        parameters = {p: None for held, _ in self._owned.values() for p in held}
        modules = {self._stand_ins.get(m, m): None for _, held in self._owned.values() for m in held}
        before = {p for p, given in self._given.items() if given}
        for parameter in [p for p in self._given if p not in parameters]:
            parameter.requires_grad_(self._given.pop(parameter))
        for parameter in parameters:
            if parameter not in self._given:
                self._given[parameter] = parameter.requires_grad
                parameter.requires_grad_(False)
                parameter.grad = None
        for module in [m for m in self._trained if m not in modules]:
            self._trained.remove(module)
            module.training = True
        self._held_modules = modules
        return before != {p for p, given in self._given.items() if given}
