"""Losses equal what their papers' formulas give by hand; the pool of pictures goes on where it stopped."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export import losses  # noqa: E402
from export.pool import PicturePool  # noqa: E402


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_l1_is_the_mean_distance_of_pictures_from_minus_one_to_one() -> None:
    blurred, sharp = numbers(0.1, 0.5), numbers(0.3, 0.4)
    by_hand = (abs((2 * 0.1 - 1) - (2 * 0.3 - 1)) + abs((2 * 0.5 - 1) - (2 * 0.4 - 1))) / 2
    assert losses.l1(blurred, sharp).item() == pytest.approx(by_hand)


def test_l2_is_the_mean_square() -> None:
    assert losses.l2(numbers(1, 5), numbers(3, 4)).item() == pytest.approx((2**2 + 1**2) / 2)


def test_the_charbonnier_distance_of_equal_pictures_is_its_epsilon() -> None:
    picture = torch.rand(1, 3, 8, 8)
    assert losses.RestoreLoss(0.05, epsilon=1e-3)(picture, picture).item() == pytest.approx(1e-3)


def test_the_spectrum_of_a_flat_difference_is_one_coefficient() -> None:
    flat, black = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)
    charbonnier = math.sqrt(0.5**2 + 0.1**2)
    coefficient = 0.5 * 16 / math.sqrt(16)  # the sum over the square root of the count: orthonormal
    numbers_in_half_a_spectrum = 4 * (4 // 2 + 1) * 2
    expected = charbonnier + 0.2 * coefficient / numbers_in_half_a_spectrum
    assert losses.RestoreLoss(0.2, epsilon=0.1)(flat, black).item() == pytest.approx(expected)


def test_the_conditional_discriminator_pays_half_of_both_entropies() -> None:
    real, fake = numbers(logit(0.9), logit(0.5)), numbers(logit(0.2), logit(0.4))
    entropy_real = -(math.log(0.9) + math.log(0.5)) / 2
    entropy_fake = -(math.log(1 - 0.2) + math.log(1 - 0.4)) / 2
    assert losses.cgan_discriminator(real, fake).item() == pytest.approx((entropy_real + entropy_fake) / 2)


def test_the_conditional_generator_pays_for_what_is_not_taken_for_real() -> None:
    fake = numbers(logit(0.2), logit(0.4))
    assert losses.cgan_generator(fake).item() == pytest.approx(-(math.log(0.2) + math.log(0.4)) / 2)


def test_the_conditional_generator_learns_most_where_it_is_seen_through() -> None:
    fake = numbers(-30.0, 30.0).requires_grad_()
    losses.cgan_generator(fake).backward()
    assert fake.grad is not None
    torch.testing.assert_close(fake.grad, numbers(-1 / 2, 0.0))


def test_entropies_of_sure_logits_are_finite() -> None:
    assert losses.cgan_discriminator(numbers(-300.0), numbers(300.0)).item() == pytest.approx(300)
    assert losses.cgan_generator(numbers(-300.0)).item() == pytest.approx(300)


def test_the_least_squares_discriminator_pays_half_of_both_squares() -> None:
    real, fake = numbers(0.8, 0.5), numbers(0.1, -0.4)
    square_real = ((0.8 - 1) ** 2 + (0.5 - 1) ** 2) / 2
    square_fake = (0.1**2 + 0.4**2) / 2
    assert losses.lsgan_discriminator(real, fake).item() == pytest.approx((square_real + square_fake) / 2)


def test_the_least_squares_generator_pays_for_its_distance_to_one() -> None:
    assert losses.lsgan_generator(numbers(0.1, -0.4)).item() == pytest.approx((0.9**2 + 1.4**2) / 2)


def test_the_critic_pays_for_fakes_above_the_real() -> None:
    assert losses.wasserstein_critic(numbers(1, 4), numbers(7, 5)).item() == pytest.approx((7 + 5) / 2 - (1 + 4) / 2)


def test_the_generator_of_a_critic_wants_high_scores() -> None:
    assert losses.wasserstein_generator(numbers(7, 5)).item() == pytest.approx(-(7 + 5) / 2)


def test_clipping_brings_weights_and_biases_into_the_limits() -> None:
    critic = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    nn.init.constant_(critic[0].bias, -3.0)
    with torch.no_grad():
        critic[0].weight.copy_(torch.tensor([[0.005, 0.2]]))
    losses.clip_weights(critic, 0.01)
    torch.testing.assert_close(critic[0].weight.detach(), torch.tensor([[0.005, 0.01]]))
    torch.testing.assert_close(critic[0].bias.detach(), numbers(-0.01))
    torch.testing.assert_close(critic[1].weight.detach(), numbers(0.01))


@pytest.mark.parametrize(
    "loss", [losses.lsgan_discriminator, losses.cgan_discriminator, losses.wasserstein_critic, losses.l1, losses.l2]
)
def test_a_loss_of_bfloat16_is_a_float32(loss: object) -> None:
    half = torch.rand(2, 1, 4, 4).bfloat16()
    assert callable(loss)
    assert loss(half, half).dtype == torch.float32


def picture(value: int) -> torch.Tensor:
    return torch.full((1, 3, 2, 2), float(value))


def values(pictures: torch.Tensor) -> list[int]:
    return [int(value) for value in pictures[:, 0, 0, 0]]


def test_a_pool_that_fills_gives_back_what_it_gets() -> None:
    pool, random = PicturePool(5), torch.Generator().manual_seed(0)
    assert [values(pool.exchange(picture(i), random)) for i in range(5)] == [[i] for i in range(5)]


def test_a_full_pool_gives_an_older_picture_half_of_the_time_and_none_twice() -> None:
    pool, random = PicturePool(50), torch.Generator().manual_seed(0)
    given = [values(pool.exchange(picture(i), random))[0] for i in range(1050)]
    older = [i - value for i, value in enumerate(given) if value != i]
    assert 450 < len(older) < 550
    assert min(older) > 0
    new = given[50:]
    assert len(set(new)) == len(new)


def test_pictures_of_one_batch_are_exchanged_one_by_one() -> None:
    one_by_one, at_once = PicturePool(3), PicturePool(3)
    batch = torch.cat([picture(i) for i in range(20)])
    random = torch.Generator().manual_seed(1)
    singly = [values(one_by_one.exchange(single, random))[0] for single in batch.split(1)]
    assert values(at_once.exchange(batch, torch.Generator().manual_seed(1))) == singly


def test_a_pool_goes_on_from_its_state_as_if_never_stopped() -> None:
    pool, random = PicturePool(4), torch.Generator().manual_seed(2)
    for i in range(10):
        pool.exchange(picture(i), random)
    resumed, same_random = PicturePool(4), torch.Generator()
    resumed.load({name: tensor.clone() for name, tensor in pool.state().items()})
    same_random.set_state(random.get_state())
    for i in range(10, 40):
        assert values(resumed.exchange(picture(i), same_random)) == values(pool.exchange(picture(i), random))


def test_a_state_is_not_changed_by_later_exchanges() -> None:
    pool, random = PicturePool(2), torch.Generator().manual_seed(0)
    pool.exchange(torch.cat([picture(0), picture(1)]), random)
    state = pool.state()
    for i in range(2, 20):
        pool.exchange(picture(i), random)
    assert values(state["pictures"]) == [0, 1]


def test_the_state_of_an_empty_pool_empties_another() -> None:
    pool, random = PicturePool(2), torch.Generator().manual_seed(0)
    pool.exchange(picture(7), random)
    pool.load(PicturePool(2).state())
    assert pool.state() == {}


def test_a_pool_holds_no_graph_and_no_view_of_what_it_is_given() -> None:
    pool, random = PicturePool(1), torch.Generator().manual_seed(0)
    generated = picture(3).requires_grad_()
    assert not pool.exchange(generated * 2, random).requires_grad
    with torch.no_grad():
        generated.zero_()
    assert values(pool.state()["pictures"]) == [6]


def test_a_pool_of_no_pictures_passes_everything_through() -> None:
    pool, random = PicturePool(0), torch.Generator().manual_seed(0)
    assert [values(pool.exchange(picture(i), random)) for i in range(5)] == [[i] for i in range(5)]
    assert pool.state() == {}


def test_more_pictures_than_a_pool_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="pool of 2 pictures cannot take 3"):
        PicturePool(2).load({"pictures": torch.zeros(3, 3, 2, 2)})
    with pytest.raises(ValueError, match="size must be at least 0, got -1"):
        PicturePool(-1)
