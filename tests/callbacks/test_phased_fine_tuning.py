import math

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from toys import Recorder, fit, layer_of, loader, make, moved, trainer, weights

from lightning_freeze import (
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    StepTrigger,
)
from lightning_freeze.errors import ConfigurationError

EVERYTHING = {"embeddings", "0", "1", "2", "3", "head"}


def run(*callbacks, module=None, **options):
    """The changes of the trainable set that a fit goes through."""
    recorder = Recorder()
    fit(module or make(), *callbacks, recorder, **options)
    return recorder


def test_gradual_unfreezing_goes_from_the_top_down_with_each_epoch():
    recorder = run(GradualUnfreezing(verbose=False), max_epochs=6)
    assert recorder.phases() == [
        ((0, 0), {"head"}),
        ((1, 4), {"3", "head"}),
        ((2, 8), {"2", "3", "head"}),
        ((3, 12), {"1", "2", "3", "head"}),
        ((4, 16), {"0", "1", "2", "3", "head"}),
        ((5, 20), EVERYTHING),
    ]


def test_start_stop_and_layers_per_phase():
    callback = GradualUnfreezing(StepTrigger(3), start="3,head", layers_per_phase=2, stop="0", verbose=False)
    assert run(callback).phases() == [
        ((0, 0), {"3", "head"}),
        ((0, 3), {"1", "2", "3", "head"}),
        ((1, 6), EVERYTHING - {"embeddings"}),
    ]


def test_what_trains_moves_and_what_is_frozen_does_not():
    module = make()
    before = weights(module)
    fit(module, GradualUnfreezing(stop="2", verbose=False))
    assert moved(before, weights(module)) == {"2", "3", "head"}


def test_layers_wake_up_in_the_batch_in_which_they_unfreeze():
    recorder = run(GradualUnfreezing(StepTrigger(2), stop="2", verbose=False), module=make(dropout=0.5))
    assert recorder.eval_blocks[:6] == [{"0", "1", "2", "3"}] * 2 + [{"0", "1", "2"}] * 2 + [{"0", "1"}] * 2


@pytest.mark.parametrize("static_first", [True, False])
def test_statically_frozen_layers_stay_frozen_and_cost_no_phase(static_first):
    static, gradual = LayerFreezing("embeddings,:3", verbose=False), GradualUnfreezing(verbose=False)
    callbacks = [static, gradual] if static_first else [gradual, static]
    module = make()
    assert run(*callbacks, module=module).phases() == [((0, 0), {"head"}), ((1, 4), {"3", "head"})]
    assert len(gradual.plan) == 2
    assert all(p.requires_grad for p in module.parameters())


def test_what_was_frozen_at_construction_stays_frozen():
    module = make()
    module.encoder.layers[3].linear.requires_grad_(False)
    before = weights(module)
    fit(module, GradualUnfreezing(stop="3", verbose=False))
    changed = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert changed == {
        "classifier.weight",
        "classifier.bias",
        "encoder.layers.3.norm.weight",
        "encoder.layers.3.norm.bias",
    }
    assert not module.encoder.layers[3].linear.weight.requires_grad


def test_phases_may_refreeze_and_use_steps_and_plateaus():
    phases = [
        Phase("head", StepTrigger(2)),
        Phase("2:,head", PlateauTrigger("scripted", patience=0)),
        Phase(":1", EpochTrigger(1)),
        Phase("all"),
    ]
    module = make(values=[1.0, 0.5, 0.6, 0.1, 0.1, 0.1])
    recorder = run(PhasedFineTuning(phases, verbose=False), module=module, max_epochs=5)
    assert recorder.phases() == [
        ((0, 0), {"head"}),
        ((0, 2), {"2", "3", "head"}),
        ((3, 12), {"0"}),  # 1.0 sets the best, 0.5 improves on it, 0.6 does not
        ((4, 16), EVERYTHING),
    ]


def test_a_plateau_takes_effect_in_mid_epoch():
    phases = [Phase("head", PlateauTrigger("scripted", patience=0)), Phase("all")]
    module = make(values=[1.0, 1.0, 1.0, 1.0])
    recorder = run(PhasedFineTuning(phases, verbose=False), module=module, val_check_interval=0.5, max_epochs=2)
    assert recorder.phases() == [((0, 0), {"head"}), ((1, 4), EVERYTHING)]
    module = make(values=[1.0, 0.9, 1.0, 1.0])
    recorder = run(PhasedFineTuning(phases, verbose=False), module=module, val_check_interval=0.5, max_epochs=2)
    assert recorder.phases() == [((0, 0), {"head"}), ((1, 6), EVERYTHING)]


def test_the_sanity_check_is_no_validation():
    phases = [Phase("head", PlateauTrigger("val_loss", patience=0)), Phase("all")]
    callback = PhasedFineTuning(phases, verbose=False)
    fit(make(), callback, num_sanity_val_steps=2, max_epochs=3, limit_train_batches=1)
    # Three validations: with the sanity check counted, the second epoch would begin the next phase.
    assert callback.plan[callback.phase].train == "head" or callback.schedule.progress.starts[-1].epoch == 2


def test_any_of_several_triggers():
    phases = [Phase("head", EpochTrigger(2) | PlateauTrigger("scripted", patience=0)), Phase("all")]
    steady, falling = [1.0, 1.0, 1.0, 1.0], [1.0, 0.9, 0.8, 0.7]
    for values, begins in ((steady, (2, 8)), (falling, (2, 8)), ([1.0, 2.0, 1.0], (2, 8))):
        recorder = run(PhasedFineTuning(phases, verbose=False), module=make(values=values))
        assert recorder.phases()[1][0] == begins
    recorder = run(PhasedFineTuning(phases, verbose=False), module=make(values=steady), val_check_interval=0.25)
    assert recorder.phases()[1][0] == (0, 2)


def test_values_that_are_not_finite_never_improve_and_are_named_once():
    phases = [Phase("head", PlateauTrigger("scripted", patience=1)), Phase("all")]
    callback = PhasedFineTuning(phases, verbose=False)
    with pytest.warns(UserWarning, match="'scripted', which is nan; this never counts") as caught:
        recorder = run(callback, module=make(values=[math.nan, math.inf, 1.0, 1.0]), max_epochs=4)
    assert len([w for w in caught if "never counts" in str(w.message)]) == 1
    assert recorder.phases()[1][0] == (2, 8)


# --------------------------------------------------------------------------------------------------- the same by hand


def by_hand(module, plan, batches, epochs, accumulate=1, clip=None):
    """A plain PyTorch loop: ``plan`` maps (epoch, batch) to the set of layers that train from there on."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    data = list(loader(batches))
    for epoch in range(epochs):
        for number, (tokens, labels) in enumerate(data):
            if (epoch, number) in plan:
                for name, parameter in module.named_parameters():
                    parameter.requires_grad_(layer_of(name) in plan[epoch, number])
                    parameter.grad = None
            (torch.nn.functional.cross_entropy(module(tokens), labels) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(data):
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return weights(module)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_equals_a_plain_loop_bit_for_bit(accumulate, clip):
    def adamw(module):
        return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)

    phases = [
        Phase("head", EpochTrigger(1)),
        Phase("2:,head", EpochTrigger(1)),
        Phase("embeddings,0", PlateauTrigger("scripted", patience=1)),
        Phase("all"),
    ]
    module = make(make_optimizers=adamw, values=[5.0] * 20)
    # With accumulation, validation falls in the midst of it: the last phase begins with the third batch of the fourth
    # epoch, and the gradients of the two batches before it must be dropped.
    fit(
        module,
        PhasedFineTuning(phases, verbose=False),
        max_epochs=6,
        val_check_interval=2 if accumulate == 3 else 1.0,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    plan = {(0, 0): {"head"}, (1, 0): {"2", "3", "head"}, (2, 0): {"embeddings", "0"}}
    plan[(3, 2) if accumulate == 3 else (5, 0)] = EVERYTHING
    expected = by_hand(make(), plan, 4, 6, accumulate, clip)
    after = weights(module)
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in after)


def test_a_gradient_accumulated_in_one_phase_is_not_applied_in_the_next():
    phases = [Phase("all", PlateauTrigger("scripted", patience=0)), Phase("head")]
    module = make(values=[1.0, 1.0, 1.0, 1.0, 1.0])
    before = None

    class Snapshot(Recorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            nonlocal before
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if before is None and callback.phase == 1:
                before = weights(pl_module)
                assert all(p.grad is None for p in pl_module.parameters())

    callback = PhasedFineTuning(phases, verbose=False)
    # One validation after each of the first batches: the second one ends the phase in the midst of an accumulation of
    # four.
    fit(module, callback, Snapshot(), val_check_interval=1, accumulate_grad_batches=4, max_epochs=1)
    assert before is not None
    assert moved(before, weights(module)) == {"head"}


# --------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("takes_arguments", [True, False])
def test_restore_best_goes_back_to_the_best_weights_of_the_phase(takes_arguments):
    seen, starts = [], []

    class Snapshot(Recorder):
        def on_validation_end(self, trainer, pl_module):
            seen.append(weights(pl_module))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            starts.append(weights(pl_module))

    phases = [Phase("head", PlateauTrigger("scripted", patience=1)), Phase("all")]
    module = make(values=[3.0, 1.0, 2.0, 2.0, 1.5])
    if not takes_arguments:  # Lightning calls it without any
        module.state_dict = lambda: type(module).state_dict(module)
    fit(module, PhasedFineTuning(phases, restore_best=True, verbose=False), Snapshot(), max_epochs=5)
    begins = starts[4 * 4]  # the second validation was the best one, the fourth ended the phase
    assert all(torch.equal(begins[name], seen[1][name]) for name in begins)
    assert moved(begins, seen[3]) == {"head"}


def test_restore_best_by_another_metric_and_without_one():
    phases = [Phase("head", EpochTrigger(1)), Phase("all")]
    PhasedFineTuning(phases, restore_best=True, monitor="val_loss")
    with pytest.raises(ConfigurationError, match="the triggers watch no metric; name one"):
        PhasedFineTuning(phases, restore_best=True)


def test_newly_unfrozen_layers_warm_up_to_their_rate():
    callback = GradualUnfreezing(StepTrigger(4), stop="2", warmup_steps=4, verbose=False)
    recorder = run(callback)
    head = [rates["classifier.weight"] for rates in recorder.rates]
    third = [rates["encoder.layers.3.linear.weight"] for rates in recorder.rates]
    second = [rates["encoder.layers.2.linear.weight"] for rates in recorder.rates]
    assert head == pytest.approx([0.1] * 12)
    assert third[4:] == pytest.approx([0.025, 0.05, 0.075, 0.1] + [0.1] * 4)
    assert second[8:] == pytest.approx([0.025, 0.05, 0.075, 0.1])


def test_a_warm_up_longer_than_its_phase_goes_on_in_the_next():
    recorder = run(GradualUnfreezing(StepTrigger(2), stop="2", warmup_steps=4, verbose=False))
    third = [rates["encoder.layers.3.linear.weight"] for rates in recorder.rates]
    assert third[2:8] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("guarded", [True, False])
def test_early_stopping_waits_for_the_phases_and_restarts_its_count(guarded):
    phases = [Phase("head", EpochTrigger(4)), Phase("all")]
    stopping = EarlyStopping("scripted", patience=2)
    callback = PhasedFineTuning(phases, guard_early_stopping=guarded, verbose=False)
    the_trainer = fit(make(values=[1.0] * 20), stopping, callback, max_epochs=20)
    # Without the guard: the first value sets the best, two more end the run. With it: two in the last phase.
    assert the_trainer.current_epoch == (6 if guarded else 3)
    assert stopping.patience == 2
    assert not {"on_validation_end", "on_train_epoch_end"} & vars(stopping).keys()


def test_early_stopping_still_stops_on_a_value_that_is_not_finite():
    phases = [Phase("head", EpochTrigger(4)), Phase("all")]
    the_trainer = fit(
        make(values=[1.0, math.nan, 1.0, 1.0]),
        EarlyStopping("scripted"),
        PhasedFineTuning(phases, verbose=False),
        max_epochs=8,
    )
    assert the_trainer.current_epoch == 2


def test_one_line_is_printed_at_each_phase(capsys):
    run(GradualUnfreezing(stop="2"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "phase" in line]
    assert lines == [
        "Epoch 1, step 4: phase 2 of 3 trains 3, head (106 of 498 parameters) until EpochTrigger(1).",
        "Epoch 2, step 8: phase 3 of 3 trains 2, 3, head (194 of 498 parameters).",
    ]


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([], "at least one phase"),
        ([Phase("head"), Phase("all")], r"Phase 1 of 2 \(head\) has no trigger"),
        ([Phase(" ", EpochTrigger(1)), Phase("all")], "Phase 1 trains ' '"),
        (["head"], "Phase 1 is 'head'"),
        ([Phase("head", 3), Phase("all")], "Phase 1 ends with 3"),
    ],
)
def test_wrong_phases_are_refused_at_once(phases, words):
    with pytest.raises(ConfigurationError, match=words):
        PhasedFineTuning(phases)


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        ([PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("9")])], "9"),
        ([PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("head")])], "Phases 1 and 2 .* train the same"),
        ([GradualUnfreezing(), LayerFreezing("head")], "Phase 1 of GradualUnfreezing .* frozen by LayerFreezing"),
        ([GradualUnfreezing(), PhasedFineTuning([Phase("all")])], "both schedule the same layers"),
        ([GradualUnfreezing(stop="head", start="0")], r"stop='head'\) lies above"),
        ([GradualUnfreezing(start="haed")], "haed"),
        (
            [PhasedFineTuning([Phase("head", PlateauTrigger("val_los", patience=0)), Phase("all")])],
            "Did you mean 'val_loss'",
        ),
    ],
)
def test_wrong_schedules_are_refused(callbacks, words):
    module = make()
    with pytest.raises(ConfigurationError, match=words):
        fit(module, *callbacks)
    assert all(p.requires_grad for p in module.parameters())


def test_a_plateau_without_validation_is_refused_before_training():
    module = make()
    before = weights(module)
    with pytest.raises(ConfigurationError, match="no validation"):
        fit(module, GradualUnfreezing(PlateauTrigger("val_loss")), limit_val_batches=0)
    assert not moved(before, weights(module))


def test_layers_that_no_optimizer_holds_cannot_be_unfrozen():
    module = make(make_optimizers=lambda m: torch.optim.SGD(m.classifier.parameters(), lr=0.1))
    with pytest.raises(ConfigurationError, match=r"Phase 2 .* no optimizer of Toy holds"):
        fit(module, PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("2")], verbose=False))


def test_an_optimizer_built_from_what_requires_grad_gets_the_frozen_layers_too():
    module = make(make_optimizers=lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1))
    before = weights(module)
    fit(module, GradualUnfreezing(layers_per_phase=5, verbose=False))
    assert moved(before, weights(module)) == EVERYTHING


def test_a_schedule_that_cannot_finish_is_named_with_its_numbers():
    with pytest.warns(
        UserWarning, match=r"6 phases .* after 5 epochs \(20 optimizer steps\).* ends after 3 epochs \(12 steps\)"
    ):
        fit(make(), GradualUnfreezing(verbose=False), max_epochs=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers_per_phase": 0}, "layers_per_phase=0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"mode": "mean"}, "mode='mean'"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        GradualUnfreezing(**options)


def test_a_checkpoint_can_be_tested_with_and_without_the_callbacks(tmp_path):
    def gradual():
        return GradualUnfreezing(stop="1", restore_best=True, monitor="val_loss", verbose=False)

    class Tested(type(make())):
        def test_step(self, batch, batch_idx):
            self.log("frozen", float(sum(not p.requires_grad for p in self.parameters())))

    fitted = fit(make(), gradual(), max_epochs=4)
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    (with_them,) = trainer(gradual()).test(Tested(), loader(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        (without,) = trainer().test(Tested(), loader(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert with_them == without == {"frozen": 0}


def test_where_the_head_owns_nothing_unfreezing_starts_with_the_top_block():
    class Tied(type(make())):
        def __init__(self):
            super().__init__()
            self.classifier = torch.nn.Linear(8, 16, bias=False).double()
            self.classifier.weight = self.encoder.embeddings.weight

    recorder = run(GradualUnfreezing(verbose=False), module=Tied(), max_epochs=5)
    assert recorder.trains[0] == {"3"}
    with pytest.raises(ConfigurationError, match=r"own no parameters.*'-1,head'"):
        fit(Tied(), PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("all")], verbose=False))


def test_the_mode_of_a_named_monitor_is_the_triggers():
    phases = [Phase("head", PlateauTrigger("scripted", mode="max", patience=1)), Phase("all")]
    assert PhasedFineTuning(phases, restore_best=True, monitor="scripted").mode == "max"
    assert PhasedFineTuning(phases, restore_best=True).mode == "max"
    assert PhasedFineTuning(phases, restore_best=True, monitor="val_loss").mode == "min"


def test_a_misspelt_metric_is_named_in_the_sanity_check():
    phases = [Phase("head", PlateauTrigger("val_los", patience=0)), Phase("all")]
    with (
        pytest.warns(UserWarning, match="the sanity check did not log. Did you mean 'val_loss'"),
        pytest.raises(ConfigurationError, match="'val_los', which the module has not logged"),
    ):
        fit(make(), PhasedFineTuning(phases, verbose=False), num_sanity_val_steps=1)


def test_a_short_last_window_of_accumulation_counts_as_a_step():
    # Five batches by fours make two steps an epoch, so three steps are reached; a warning would be an error here.
    phases = [Phase("head", StepTrigger(3)), Phase("all")]
    recorder = run(PhasedFineTuning(phases, verbose=False), max_epochs=2, batches=5, accumulate_grad_batches=4)
    assert recorder.phases()[1][0] == (1, 3)


def test_without_a_head_unfreezing_starts_with_the_top_layer():
    recorder = Recorder()
    groups = {"low": ["encoder.layers.0"], "top": ["encoder.layers.3"]}
    with pytest.warns(UserWarning, match="in no group"):  # the embeddings train below a frozen block
        fit(make(), GradualUnfreezing(groups=groups, verbose=False), recorder, max_epochs=2)
    assert recorder.phases() == [((0, 0), EVERYTHING - {"0"}), ((1, 4), EVERYTHING)]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PhasedFineTuning(Phase("head")), "expected a list of phases"),
        (lambda: PhasedFineTuning("head"), "expected a list of phases"),
        (lambda: GradualUnfreezing(stop=2), r"stop=2\): expected a selector such as '2'"),
        (lambda: GradualUnfreezing(restore_best=True, monitor=""), "monitor=''"),
    ],
)
def test_values_of_the_wrong_type_are_refused(build, words):
    with pytest.raises(ConfigurationError, match=words):
        build()


@pytest.mark.parametrize("drop", [True, False])
def test_the_optimizers_state_of_refrozen_layers_can_be_dropped(drop):
    held = []

    class Look(Recorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            (optimizer,) = trainer.optimizers
            held.append(
                {layer_of(n) for n, p in pl_module.named_parameters() if "exp_avg" in optimizer.state.get(p, {})}
            )

    phases = [Phase("2:,head", EpochTrigger(1)), Phase("head", EpochTrigger(1)), Phase("3,head")]
    module = make(make_optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
    fit(module, PhasedFineTuning(phases, drop_optimizer_state=drop, verbose=False), Look())
    kept = {"head"} if drop else {"2", "3", "head"}
    assert held[1] == {"2", "3", "head"}
    assert held[4] == held[8] == kept
    assert held[9] == kept | {"3"}


def test_layers_that_no_optimizer_holds_are_not_unfrozen_in_silence():
    def optimizer_without(*layers):
        return lambda m: torch.optim.SGD([p for n, p in m.named_parameters() if layer_of(n) not in layers], lr=0.1)

    all_but_the_head = optimizer_without("embeddings", "0", "1", "2", "3")
    with pytest.raises(ConfigurationError, match=r"Phase 2 .* would train nothing new: no optimizer .* holds"):
        fit(make(make_optimizers=all_but_the_head), GradualUnfreezing(verbose=False), max_epochs=6)
    with pytest.warns(UserWarning, match="GradualUnfreezing unfreezes 1, of which no optimizer holds a parameter"):
        schedule = GradualUnfreezing(layers_per_phase=5, verbose=False)
        fit(make(make_optimizers=optimizer_without("1")), schedule)


def test_a_metric_of_several_loaders_is_suggested():
    class Two(type(make())):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("loss_of", torch.tensor(1.0))

    schedule = PhasedFineTuning([Phase("head", PlateauTrigger("loss_of")), Phase("all")], verbose=False)
    with pytest.raises(ConfigurationError, match="Did you mean 'loss_of/dataloader_idx_0'"):
        trainer(schedule, max_epochs=9).fit(Two(), loader(), [loader(2), loader(2)])
