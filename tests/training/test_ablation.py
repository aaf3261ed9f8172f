"""The paper's Table 3: each row of configs/ablation adds one idea to the row before, and each trains."""

from itertools import pairwise

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.load import empty_model, load_weights, write_checkpoint
from ldm.checkpoint.names import MAPPER, UNET, VAE
from ldm.data.sample import Recipe
from ldm.models.diffusion.conditioning import reference_token, unconditional_token
from ldm.models.diffusion.denoiser import guided_eps, make_denoiser
from ldm.pipeline import PaintByExample
from ldm.training.start import initial_model
from ldm.util import UserError, instantiate_from_config
from tests.conftest import ROOT

ROWS = ["baseline", "prior", "augmentation", "bottleneck", "classifier_free"]
ALL_TOKENS = ROWS[:3]
TRAIN = "data.params.train.params"
IDEAS = {
    "prior": {"model.prior": (False, None)},
    "augmentation": {
        f"{TRAIN}.reference_augmentation": (False, None),
        f"{TRAIN}.mask_augmentation": (False, None),
    },
    "bottleneck": {"model.params.cond_stage_config.params.bottleneck": (False, None)},
    "classifier_free": {"model.params.u_cond_percent": (0, 0.2)},
}


def row(name, over="tiny"):
    return OmegaConf.merge(*(OmegaConf.load(ROOT / f"configs/{part}.yaml") for part in (over, f"ablation/{name}")))


def flat(config, prefix=""):
    """A nested config as {"a.b": value}, without empty leaves."""
    if not isinstance(config, dict):
        return {prefix: config}
    leaves = {}
    for key, value in config.items():
        leaves |= flat(value, f"{prefix}.{key}".lstrip("."))
    return leaves


def resolved(config):
    return flat(OmegaConf.to_container(config, resolve=True))


def randomised(config):
    """The config's model with random numbers for weights that start as zero, which would hide most of the network."""
    torch.manual_seed(0)
    model = instantiate_from_config(config["model"])
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def baseline():
    """The baseline at toy width. It is shared, so tests must not change its weights."""
    return randomised(row("baseline")).eval()


@pytest.fixture
def batch():
    """Two samples of 64 x 64."""
    image, mask = torch.rand(2, 3, 64, 64) * 2 - 1, torch.ones(2, 1, 64, 64)
    mask[..., 16:48, 16:48] = 0
    return {"GT": image, "inpaint_image": image * mask, "inpaint_mask": mask, "ref_imgs": torch.randn(2, 3, 224, 224)}


# ------------------------------------------------------------------------------------------------ the configs


@pytest.mark.parametrize("over", ["v1", "tiny"])
def test_each_row_adds_one_idea(over):
    assert sorted(path.stem for path in (ROOT / "configs/ablation").iterdir()) == sorted(ROWS)
    for before, after in pairwise(ROWS):
        a, b = resolved(row(before, over)), resolved(row(after, over))
        differences = {key: (a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        assert differences == IDEAS[after]


@pytest.mark.parametrize("over", ["v1", "tiny"])
def test_the_last_row_is_the_whole_method(over):
    assert row("classifier_free", over) == OmegaConf.load(ROOT / f"configs/{over}.yaml")


@pytest.mark.parametrize("name", ROWS)
def test_the_comment_names_the_published_row_and_the_command(name):
    published = {
        "baseline": "FID 3.61, QS 76.71, CLIP score 85.90",
        "prior": "FID 3.40, QS 77.63, CLIP score 88.79",
        "augmentation": "FID 3.44, QS 76.86, CLIP score 81.68",
        "bottleneck": "FID 3.26, QS 76.62, CLIP score 81.41",
        "classifier_free": "FID 3.18, QS 77.80, CLIP score 84.97",
    }
    first, second, *_ = (ROOT / f"configs/ablation/{name}.yaml").read_text().splitlines()
    assert first.startswith("# Table 3, ") and first.endswith(published[name])
    assert second == f"# python main.py -n {name} --base configs/v1.yaml configs/ablation/{name}.yaml"


@pytest.mark.parametrize("name", ROWS)
def test_the_data_of_each_row(name):
    """Rows before + augmentation train without augmentations; validation is the same as in v1 for all rows."""
    without = OmegaConf.load(ROOT / "configs/v1.yaml")["data"]["params"]
    data = row(name, "v1")["data"]["params"]
    assert (data["validation"], data["test"]) == (without["validation"], without["test"])
    params = {k: v for k, v in data["train"]["params"].items() if k not in ("state", "dataset_dir")}
    recipe = Recipe(**params)
    augmented = name not in ("baseline", "prior")
    assert (recipe.reference_augmentation, recipe.mask_augmentation) == (augmented, augmented)


# ------------------------------------------------------------------------------------------------ the model


def test_tokens_at_full_size():
    model = empty_model(row("baseline", "v1"))
    assert model.cond_stage_model.tokens == 257
    assert unconditional_token(model, 2).shape == (2, 257, 768)
    reference = torch.empty(2, 3, 224, 224, device="meta")
    assert model.get_learned_conditioning(reference).shape == (2, 257, 1024)


@pytest.mark.parametrize("name", ROWS)
def test_one_training_step(name, batch):
    config = row(name)
    model = randomised(config).train()
    model.learning_rate = 1e-3
    model.setup("fit")
    tokens = 50 if name in ALL_TOKENS else 1
    assert model.cond_stage_model.tokens == tokens
    assert reference_token(model, batch["ref_imgs"]).shape == unconditional_token(model, 2).shape == (2, tokens, 40)

    draws = model.make_draws(batch, [(0, 1), (0, 2)])
    loss, _ = model.batch_loss(batch, draws, model.u_cond_percent)
    loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    queries = [p for name, p in trainable.items() if name.endswith("attn2.to_q.weight")]
    assert len(queries) == (0 if tokens == 1 else 7)
    assert all(query.grad.any() for query in queries)
    for learned in (model.proj_out.weight, model.cond_stage_model.final_ln.weight):
        assert learned.grad.any()

    optimizer = model.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = model.learning_rate
    optimizer.step()
    after, _ = model.batch_loss(batch, draws, model.u_cond_percent)
    assert after.isfinite() and after < loss


@pytest.mark.parametrize("name", ["baseline", "classifier_free"])
def test_a_dropped_condition_is_the_learned_vector(name, batch):
    model = randomised(row(name)).eval()
    draws = model.make_draws(batch, [(0, 1), (0, 2)])
    for percent, other in ((1.0, True), (0.0, False)):
        loss, _ = model.batch_loss(batch, draws, percent)
        changed, _ = model.batch_loss(batch | {"ref_imgs": -batch["ref_imgs"]}, draws, percent)
        assert torch.equal(loss, changed) == other
        (gradient,) = torch.autograd.grad(loss, model.learnable_vector)
        assert gradient.any() == other


@torch.no_grad()
def test_every_token_is_seen(baseline, batch):
    """Patches of the reference in another order change eps, and so does a change of any single token."""
    reference = batch["ref_imgs"]
    columns = reference.unflatten(2, (7, 32)).unflatten(4, (7, 32))  # (B,3,7,32,7,32)
    permuted = columns[:, :, torch.randperm(7)][:, :, :, :, torch.randperm(7)].flatten(4).flatten(2, 3)
    assert torch.equal(permuted.flatten().sort()[0], reference.flatten().sort()[0])
    x, t = torch.randn(2, 9, 8, 8), torch.tensor([10, 500])
    context = reference_token(baseline, reference)
    eps = baseline.apply_model(x, t, context)
    assert (baseline.apply_model(x, t, reference_token(baseline, permuted)) - eps).abs().max() > 1e-4
    for token in (0, 1, 49):
        other = context.clone()
        other[:, token] += 10
        assert (baseline.apply_model(x, t, other) - eps).abs().max() > 1e-4
    assert (context[:, 1:] - context[:, :-1]).abs().amax(dim=2).min() > 1e-3


@torch.no_grad()
def test_guidance_over_all_tokens(baseline, batch):
    """Both branches in one batch equal two separate calls; v repeated over the tokens equals v alone."""
    x, t, inpaint = torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), torch.randn(2, 5, 8, 8)
    context, v = reference_token(baseline, batch["ref_imgs"]), unconditional_token(baseline, 2)
    e_cond, e_uncond = (baseline.apply_model(torch.cat([x, inpaint], dim=1), t, c) for c in (context, v))
    guided = guided_eps(make_denoiser(baseline.apply_model), inpaint, context, v, 5.0)(x, 500)
    torch.testing.assert_close(guided, e_uncond + 5 * (e_cond - e_uncond), rtol=1e-4, atol=1e-4)
    alone = baseline.apply_model(torch.cat([x, inpaint], dim=1), t, v[:, :1])
    torch.testing.assert_close(e_uncond, alone, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ its files


@pytest.mark.integration
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_baseline_checkpoint_edits(baseline, example, tmp_path, suffix):
    path = tmp_path / f"baseline.{suffix}"
    config = row("baseline")
    write_checkpoint(baseline.state_dict(), path, config)
    again = load_model(config, path).state_dict()
    assert again.keys() == baseline.state_dict().keys() and not any(name.startswith(MAPPER) for name in again)
    assert all(torch.equal(again[name], tensor) for name, tensor in baseline.state_dict().items())
    edit = PaintByExample.load(config, path, device="cpu")
    pictures = [edit(**example, scale=scale, steps=2, progress=False) for scale in (1, 5)]
    assert pictures[0].size == pictures[1].size and pictures[0].tobytes() != pictures[1].tobytes()


def test_checkpoints_of_other_rows_do_not_load(baseline, tiny):
    with pytest.raises(UserError, match=r"does not fit the config.*has 60 tensors \(cond_stage_model\.mapper\."):
        load_model(row("baseline"), tiny)
    with pytest.raises(UserError, match=r"does not fit the config.*lacks 60 tensors \(cond_stage_model\.mapper\."):
        load_weights(empty_model(row("bottleneck")), baseline.state_dict())


@pytest.mark.parametrize(("name", "kept"), [("baseline", False), ("prior", True)])
def test_the_prior(name, kept, tiny, tmp_path):
    """Stable Diffusion's autoencoder is always loaded, its UNet only with the prior."""
    given = {name: t for name, t in read_checkpoint(tiny).items() if name.startswith((UNET, VAE))}
    write_checkpoint(given, tmp_path / "sd.safetensors")
    torch.manual_seed(1)
    own = initial_model(row(name), str(tmp_path / "sd.safetensors")).state_dict()
    for key in (f"{VAE}encoder.conv_in.weight", f"{UNET}middle_block.1.proj_in.weight"):
        assert torch.equal(own[key], given[key]) == (kept or key.startswith(VAE))
