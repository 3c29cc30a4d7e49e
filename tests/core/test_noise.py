import torch

from diffedit_batch.core.noise import draw


def test_the_same_row_draws_the_same_noise() -> None:
    first = draw((10, 4, 8, 8), seed=1, image_key="a", purpose="mask")
    torch.manual_seed(123)
    assert torch.equal(first, draw((10, 4, 8, 8), seed=1, image_key="a", purpose="mask"))


def test_seed_image_and_purpose_each_change_the_noise() -> None:
    draws = [
        draw((4, 8, 8), seed=seed, image_key=image, purpose=purpose)
        for seed, image, purpose in [(1, "a", "m"), (2, "a", "m"), (1, "b", "m"), (1, "a", "n")]
    ]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert not torch.equal(one, other)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    draw((4, 8, 8), seed=1, image_key="a", purpose="mask")
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_noise_is_standard_normal() -> None:
    noise = draw((100_000,), seed=0, image_key="a", purpose="mask")
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
