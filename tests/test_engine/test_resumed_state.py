"""What a checkpoint says of an optimizer and of learning rates, looked at before a run goes on."""

import pytest
import torch
from mmengine.optim import LinearParamScheduler

from ltm_det.basics.errors import InputError
from ltm_det.engine.resumed_state import check_moments, check_optimizer, check_schedules


def test_another_optimizers_state_is_named() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    adam, sgd = torch.optim.AdamW([weight]), torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    check_optimizer(adam, torch.optim.AdamW([weight], lr=1.0).state_dict())
    for own, other in ((adam, sgd), (sgd, adam)):
        with pytest.raises(InputError, match=r"no \w+: \['betas', 'momentum'\] differ"):
            check_optimizer(own, other.state_dict())


def test_what_is_no_number_in_a_checkpoint_is_named() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    broken = optimizer.state_dict()
    broken["param_groups"][0]["lr"] = "x"
    with pytest.raises(InputError, match="'lr' of its 'optimizer' is 'x', no number"):
        check_optimizer(optimizer, broken)
    schedule = LinearParamScheduler(optimizer, "lr", end=5)
    check_schedules([schedule], [schedule.state_dict()])
    with pytest.raises(InputError, match="'last_step' of its 'param_schedulers' is None"):
        check_schedules([schedule], [schedule.state_dict() | dict(last_step=None)])
    with pytest.raises(InputError, match="has 0 schedules .*, the config 1"):
        check_schedules([schedule], [])


def test_what_an_optimizer_has_gathered_is_there_and_fits() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    check_moments(optimizer, optimizer.state_dict()["state"])
    for state, words in (
        (3, "its optimizer's state is 3"),
        ({5: {}}, "its optimizer's state has 5"),
        ({0: dict(exp_avg=torch.ones(3, 5))}, r"'exp_avg' of parameter 0 .* \(3, 5\), .* \(2,\)"),
    ):
        with pytest.raises(InputError, match=words):
            check_moments(optimizer, state)
    broken = optimizer.state_dict()
    broken["param_groups"][0]["betas"] = [1]
    with pytest.raises(InputError, match=r"'betas' of its 'optimizer' is \[1\], not 2 numbers"):
        check_optimizer(optimizer, broken)
    schedule = LinearParamScheduler(optimizer, "lr", end=5)
    with pytest.raises(InputError, match=r"no LinearParamScheduler: they have \['step'\]"):
        check_schedules([schedule], [schedule.state_dict() | dict(step="x")])


def test_an_optimizer_of_other_parameters_is_named() -> None:
    """As where frozen_stages differ: torch says what of groups, and mmengine shows a traceback."""
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    few, all_of_them = (torch.optim.AdamW([dict(params=[w]) for w in weights[:n]]) for n in (2, 3))
    for own, other in ((few, all_of_them), (all_of_them, few)):
        with pytest.raises(InputError, match="other ones are frozen"):
            check_optimizer(own, other.state_dict())
