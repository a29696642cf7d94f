"""Figures: written, not blank, repeatable, with what they must show; drawn from a method by a fixed seed."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from records import coherence_scores, ours_scores, write_run

from bench import figure, grids
from bench.drawing import draw_chains, draw_cross, draw_interpolation, draw_joint
from bench.errors import UsageError
from bench.figure import frame_limits, plot_chain, plot_scatter, plot_training
from bench.grids import picture, plot_grid_cross, plot_grid_joint, plot_interpolation, sample_grid
from bench.store import find_runs
from bench.style import COLOURS, looks
from bench.table import comparison_tables
from datasets.spec import DataSpec, Modality, Split
from methods.base import Chain, Method
from metrics.protocol import Score

SPEC = DataSpec((Modality("m0", "image", (3, 8, 8)), Modality("m1", "image", (3, 8, 8)),
                 Modality("text", "text", (4,), vocabulary=9)))  # fmt: skip


def batch(n, names=("m0", "m1")):
    return {name: torch.rand(n, 3, 8, 8) for name in names}


def good(files, stem):
    """PNG and PDF of that name, both real and not blank."""
    assert [f.name for f in files] == [f"{stem}.png", f"{stem}.pdf"]
    pixels = plt.imread(files[0])
    assert min(pixels.shape[:2]) > 50 and pixels[..., :3].std() > 0.01
    assert files[1].read_bytes().startswith(b"%PDF")
    return pixels


@pytest.fixture
def kept(monkeypatch):
    """Figures handed to `save`, so that a test can look at their axes."""
    seen = []
    for module in (figure, grids):
        real = module.save

        def spy(drawn, *args, real=real, **more):
            seen.append(drawn)
            return real(drawn, *args, **more)

        monkeypatch.setattr(module, "save", spy)
    return seen


# -- scatter -------------------------------------------------------------------------------------


def table_of(root):
    return comparison_tables(find_runs(root), methods=["mvebm_base"])[0]


def test_scatter_has_a_point_per_row_and_names_its_distance(tmp_path, kept):
    write_run(tmp_path, "ours", ours_scores())
    write_run(tmp_path, "mmvae", coherence_scores())
    write_run(tmp_path, "mopoe", coherence_scores(0.99, 0.3, share=0.9))
    good(plot_scatter(table_of(tmp_path), tmp_path / "out" / "scatter"), "scatter")
    left, right = kept[0].axes
    assert "FD-clf" in left.get_xlabel() and "FID" not in left.get_xlabel()
    legend = [text.get_text() for text in kept[0].legends[0].get_texts()]
    assert legend == ["mopoe", "mmvae", "ours (ebm)", "ours (gen)", "ours (gen_revised)", "collapsed"]
    assert len(left.containers) == 4 and len(right.containers) == 5
    (cross,) = [line for line in left.lines if line.get_gid() == "collapsed"]
    assert (cross.get_marker(), float(cross.get_ydata()[0])) == ("x", 0.99)
    assert not [line for line in right.lines if line.get_gid() == "collapsed"]


def test_scatter_prefers_fid(tmp_path, kept):
    extra = [Score("fid_uncond", 80.0, 1000, "lower", task="joint", sampler="ancestral")]
    write_run(tmp_path, "mmvae", coherence_scores() + extra)
    plot_scatter(table_of(tmp_path), tmp_path / "scatter")
    left, right = kept[0].axes
    assert left.get_xlabel().startswith("FID") and right.get_xlabel().startswith("FD-clf")


def test_scatter_without_numbers_is_one_sentence(tmp_path):
    write_run(tmp_path, "mmvae", [Score("latent_acc", 0.5, 10, "higher", attribute="500 z")])
    with pytest.raises(UsageError, match="has both a coherence and a Frechet distance"):
        plot_scatter(table_of(tmp_path), tmp_path / "scatter")


def test_looks_differ_in_colour_and_in_marker():
    found = looks([f"method{i}" for i in range(8)])
    assert len({colour for colour, _ in found.values()}) == 8
    assert len({marker for _, marker in found.values()}) == 8
    many = looks([f"method{i}" for i in range(20)])
    assert len(set(many.values())) == 20


def test_colours_stay_apart_without_red_or_green_vision():
    """Pairwise distance after a simulation of the two common kinds of colour blindness (Vienot 1999)."""
    simulate = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS])
    for matrix in simulate.values():
        seen = np.clip((rgb**2.2) @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(len(seen), 1)]
        assert apart.min() > 0.1


# -- grids ---------------------------------------------------------------------------------------


def test_sample_grid_writes_exactly_its_path(tmp_path):
    path = sample_grid(batch(6), tmp_path / ".17.grid.png")
    assert path == tmp_path / ".17.grid.png"
    assert [f.name for f in tmp_path.iterdir()] == [".17.grid.png"]


def test_grids_are_written_and_repeat_to_the_byte(tmp_path):
    torch.manual_seed(0)
    cells = batch(5)
    first = plot_grid_joint(cells, tmp_path / "a" / "joint")
    good(first, "joint")
    second = plot_grid_joint(cells, tmp_path / "b" / "joint")
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    draws = {"m0": (batch(4, ["m0"]), batch(4, ["m1"])), "m1": (batch(4, ["m1"]), batch(4, ["m0"]))}
    good(plot_grid_cross(draws, tmp_path / "cross", "a title"), "cross")
    good(plot_interpolation([batch(5), batch(5)], tmp_path / "interpolation"), "interpolation")


def test_grid_is_no_wider_than_a_page(tmp_path, kept):
    names = [f"m{i}" for i in range(5)]
    draws = {n: (batch(9, [n]), batch(9, [m for m in names if m != n])) for n in names}
    plot_grid_cross(draws, tmp_path / "cross")
    assert kept[0].get_figwidth() <= grids.PAGE + 0.01


def test_texts_stand_in_their_cells(tmp_path, kept):
    mixed = {"m0": torch.rand(3, 3, 8, 8), "text": torch.tensor([[5, 2, 1, 1], [6, 7, 2, 1], [8, 2, 1, 1]])}
    good(plot_grid_joint(mixed, tmp_path / "ids"), "ids")
    plot_grid_joint(mixed, tmp_path / "words", words=lambda ids: f"bird {int(ids[0])}")
    shown = [text.get_text() for axis in kept[1].axes for text in axis.texts]
    assert {"bird 5", "bird 6", "bird 8", "m0", "text"} <= set(shown)
    plot_grid_joint(mixed, tmp_path / "money", words=lambda ids: "a $ { $ sign")  # no formula


def test_pictures_are_clamped_rounded_and_enlarged_by_repeating():
    image = torch.full((3, 2, 2), 0.5)
    image[:, 0, 0], image[:, 1, 1] = -3.0, 7.0
    shown = picture(image, 4)
    assert shown.shape == (4, 4, 3)
    assert shown[0, 0, 0] == 0 and shown[3, 3, 0] == 255 and shown[0, 3, 0] == 128
    assert (shown[:2, :2] == 0).all() and (shown[2:, 2:] == 255).all()
    assert picture(torch.rand(1, 2, 2), 4).shape == (4, 4, 3), "grey pictures too"


# -- chains and training -------------------------------------------------------------------------


def a_chain(steps=6, n=8):
    at = list(range(0, steps + 1, 2))
    return Chain("posterior", "log_likelihood", at, [batch(n) for _ in at], torch.randn(steps + 1, n))


def test_chain_shows_frames_observation_and_profile(tmp_path, kept):
    chain = a_chain()
    good(plot_chain(chain, tmp_path / "chain", observed=batch(8), examples=2), "chain")
    *examples, profile = kept[0].axes
    assert len(examples) == 2
    assert [text.get_text() for text in examples[0].texts] == [
        "m0",
        "m1",
        "0",
        "2",
        "4",
        "6",
        "obs.",
    ]
    assert profile.get_ylabel() == "log-likelihood" and profile.get_xlabel() == "step"
    (line,) = profile.lines
    assert np.allclose(line.get_ydata(), chain.values.mean(1).numpy(), atol=1e-6)
    assert len(profile.collections) == 1, "the band"


def test_long_chains_show_their_ends_and_fit_a_page(tmp_path, kept):
    plot_chain(a_chain(steps=80), tmp_path / "chain", examples=1)
    steps = [t.get_text() for t in kept[0].axes[0].texts if t.get_text().isdigit()]
    assert (steps[0], steps[-1], len(steps)) == ("0", "80", figure.MOST_FRAMES)
    assert kept[0].get_figwidth() <= grids.PAGE


def lines(offset=0.0):
    out = []
    for i in range(1, 41):
        stage = "warm" if i <= 10 else "revise"
        terms = {"loss": math.exp(-i / 5) + offset, "energy_gap": None if i < 5 else 0.1 * i}
        out.append(
            {"kind": "train", "stage": stage, "step": 10 * i, "epoch": 0, "seconds": i, "terms": terms}
        )
        if i % 10 == 0:
            out.append({"kind": "val", "stage": stage, "step": 10 * i, "epoch": 0, "terms": {"loss": 1.0}})
    return out


def test_training_has_a_panel_per_term_and_marks_stages(tmp_path, kept):
    good(plot_training({"ours": lines(), "mmvae": lines(0.1)}, tmp_path / "training"), "training")
    titles = [axis.get_title(loc="left") for axis in kept[0].axes]
    assert titles == ["loss", "energy gap"]
    legend = [text.get_text() for text in kept[0].legends[0].get_texts()]
    assert legend == ["ours", "ours, validation", "mmvae", "mmvae, validation"]
    marks = [line for line in kept[0].axes[0].lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in marks] == [[100.0, 100.0]]


def test_training_without_a_log_or_with_an_unknown_term(tmp_path):
    with pytest.raises(UsageError, match="has a training log"):
        plot_training({"ours": []}, tmp_path / "t")
    with pytest.raises(UsageError, match="no run logged the term 'lss'; choose from loss, energy_gap"):
        plot_training({"ours": lines()}, tmp_path / "t", terms=["lss"])


# -- with a method -------------------------------------------------------------------------------


class Noise(Method):
    """Draws noise for everything; remembers what it was asked for."""

    chains = ("prior", "posterior")

    def __init__(self, spec, *, size: int = 4):
        super().__init__(spec)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.asked = []

    def _cells(self, n, names):
        images = {name: torch.rand(n, *self.spec[name].shape) for name in names if name != "text"}
        return images | {name: torch.randint(0, 9, (n, 4)) for name in names if name == "text"}

    def sample_prior(self, n):
        return {"z": torch.randn(n, 4), "w.m0": torch.randn(n, 2)}

    def decode(self, latent, targets):
        self.asked.append({name: cells.clone() for name, cells in latent.items()})
        return self._cells(len(latent["z"]), targets)

    def cross_generate(self, given, targets, sampler=None, steps=None):
        assert not self.training and not torch.is_grad_enabled()
        self.asked.append((tuple(given), tuple(targets), sampler))
        return self._cells(len(next(iter(given.values()))), targets)

    def chain(self, kind, x, n, steps=None, every=2):
        assert (x is None) == (kind == "prior")
        steps = steps or 4
        at = list(range(0, steps + 1, every))
        return Chain(
            kind, "energy", at, [self._cells(n, self.spec.names) for _ in at], torch.randn(steps + 1, n)
        )


@pytest.fixture
def noise():
    return Noise(SPEC).train()


@pytest.fixture
def split():
    stored = {"m0": torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)}
    stored |= {"m1": stored["m0"].flip(0), "text": torch.randint(0, 9, (20, 4))}
    return Split(SPEC, stored, {"digit": torch.arange(20) % 10})


def test_drawing_is_fixed_by_the_seed_and_leaves_no_trace(noise, tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = draw_joint(noise, tmp_path / "a", columns=4, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and noise.training
    torch.rand(5)
    assert draw_joint(noise, tmp_path / "b", columns=4, seed=1)[0].read_bytes() == first[0].read_bytes()
    assert draw_joint(noise, tmp_path / "c", columns=4, seed=2)[0].read_bytes() != first[0].read_bytes()


def test_cross_conditions_on_every_modality_alone(noise, split, tmp_path):
    good(draw_cross(noise, split, tmp_path / "cross", columns=3), "cross")
    assert noise.asked == [
        (("m0",), ("m1", "text"), "ancestral"), (("m1",), ("m0", "text"), "ancestral"),
        (("text",), ("m0", "m1"), "ancestral"),
    ]  # fmt: skip


def test_interpolation_is_a_straight_line_with_private_latents_fixed(noise, tmp_path):
    good(draw_interpolation(noise, tmp_path / "line", pairs=1, steps=5), "line")
    (latent,) = noise.asked
    steps = latent["z"].diff(dim=0)
    assert torch.allclose(steps, steps[:1].expand_as(steps), atol=1e-5) and steps.abs().min() > 0
    assert torch.equal(latent["w.m0"], latent["w.m0"][:1].expand(5, -1))


def test_every_chain_of_a_method_is_drawn(noise, split, tmp_path):
    files = draw_chains(noise, split, tmp_path / "chain", n=6)
    assert [f.name for f in files] == [
        "chain-prior.png",
        "chain-prior.pdf",
        "chain-posterior.png",
        "chain-posterior.pdf",
    ]


def test_what_a_method_cannot_do_is_one_sentence(noise, split, tmp_path):
    with pytest.raises(UsageError, match="has no sampler 'ebm' for joint"):
        draw_joint(noise, tmp_path / "x", sampler="ebm")
    with pytest.raises(UsageError, match="runs no 'data' chain; choose from prior, posterior"):
        draw_chains(noise, split, tmp_path / "x", kinds=["data"])
    plain = type("Plain", (Noise,), {"chains": ()})(SPEC)
    with pytest.raises(UsageError, match="no chain to draw: Plain runs no Markov chain"):
        draw_chains(plain, split, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_written_is_one_sentence(tmp_path):
    from datasets.spec import UserError

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        plot_grid_joint(batch(2), tmp_path / "file" / "grid")


def test_the_frame_holds_the_points_and_little_that_cannot_be() -> None:
    low, high = frame_limits([0.2, 0.95], 0.0, 1.0)
    assert low == pytest.approx(0.11) and high == pytest.approx(1.0 + 0.03 * 0.75)
    assert frame_limits([0.0, 1.0], 0.0, 1.0) == (-0.03, 1.03)
    low, high = frame_limits([300.0], 0.0, math.inf)
    assert low < 300 < high, "one point is no frame"
