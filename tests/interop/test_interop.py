"""Checkpoints in and out: names, hyper-parameters, foreign files, the inference checkpoint."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file
from unet_cases import OPTIONS, SMALL, random_params, small_unet

from configs import export as export_config
from configs import import_torch as import_config
from mbti_jax.commands import export, import_torch
from mbti_jax.interop.hyperparameters import infer_hyperparameters
from mbti_jax.interop.inference_checkpoint import check_params, is_export, read_export, write_export
from mbti_jax.interop.names import from_guided_diffusion, to_guided_diffusion
from mbti_jax.interop.tensors import read_state_dict
from mbti_jax.models.unet import UNet
from mbti_jax.training.checkpoint import Checkpointer
from mbti_jax.training.state import create_state


def assert_same_trees(tree, expected):
    tree, expected = flatten_dict(tree), flatten_dict(expected)
    assert tree.keys() == expected.keys()
    for path, value in expected.items():
        assert np.asarray(tree[path]).dtype == value.dtype, path
        np.testing.assert_array_equal(tree[path], value, err_msg=str(path))


# Names


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_round_trip_through_guided_diffusion_is_exact(options):
    model = small_unet(**options)
    params = random_params(model)
    assert_same_trees(from_guided_diffusion(to_guided_diffusion(params), model), params)


def test_round_trip_of_the_published_state_dict_is_exact(goldens):
    for file in sorted(goldens.glob("unet_*.npz")):
        config = json.loads(str(np.load(file)["config"]))
        state_dict = read_state_dict(file)
        back = to_guided_diffusion(from_guided_diffusion(state_dict, UNet(**config)))
        assert back.keys() == state_dict.keys()
        for name, value in state_dict.items():
            np.testing.assert_array_equal(back[name], value, err_msg=f"{file.name}: {name}")


def test_every_misfit_is_listed():
    model = small_unet()
    state_dict = to_guided_diffusion(random_params(model))
    del state_dict["out.0.bias"], state_dict["middle_block.1.qkv.weight"]
    state_dict["label_emb.weight"] = np.zeros((5, 64))
    state_dict["input_blocks.0.0.weight"] = np.zeros((16, 7, 3, 3))
    with pytest.raises(ValueError) as error:
        from_guided_diffusion(state_dict, model)
    message = str(error.value)
    assert "4 tensors do not fit" in message
    for line in (
        "missing     out.0.bias (16,)",
        "missing     middle_block.1.qkv.weight (96, 32, 1)",
        "unexpected  label_emb.weight (5, 64)",
        "misshapen   input_blocks.0.0.weight is (16, 7, 3, 3), the model wants (16, 6, 3, 3)",
    ):
        assert line in message


# Hyper-parameters


@pytest.mark.parametrize(
    "options",
    [
        *OPTIONS.values(),
        dict(channel_mult=(1,), num_res_blocks=3, attention_resolutions=(1,)),
        dict(channel_mult=(1, 2, 3), attention_resolutions=(), conv_resample=False),
        dict(channel_mult=(1, 1, 1, 1), num_res_blocks=2, attention_resolutions=(1, 2, 8)),
        dict(channel_mult=(0.75, 1.3, 2), model_channels=48, resblock_updown=True, num_groups=2),
    ],
    ids=lambda options: ",".join(options),
)
def test_hyperparameters_are_read_from_shapes(options):
    model = small_unet(**options)
    state_dict = to_guided_diffusion(random_params(model))
    inferred = infer_hyperparameters({name: value.shape for name, value in state_dict.items()})
    widths = [int(multiple * model.model_channels) for multiple in model.channel_mult]
    multiples = inferred.pop("channel_mult")
    assert [int(multiple * model.model_channels) for multiple in multiples] == widths
    if model.resblock_updown or len(widths) == 1:
        inferred.pop("conv_resample")
    inferred["in_channels"] //= model.patch_size**2
    inferred["out_channels"] //= model.patch_size**2
    assert inferred == {name: getattr(model, name) for name in inferred}


def test_hyperparameters_of_something_else_are_an_error():
    with pytest.raises(ValueError, match="not the tensors of a guided-diffusion UNet"):
        infer_hyperparameters({"layer1.weight": (3, 3)})


# Foreign files


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="writes the PyTorch files to be read")


# Inference checkpoints

MODEL_FIELDS = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in SMALL.items()
    if name not in ("image_size", "in_channels", "out_channels", "num_classes")
}
METADATA = {
    "contract": {
        "data": {
            "sequences": ["t1", "flair"],
            "joint": False,
            "window": 24,
            "image_size": SMALL["image_size"],
        },
        "model": MODEL_FIELDS,
        "diffusion": {
            "process": "gaussian",
            "schedule": "linear",
            "num_timesteps": 1000,
            "prediction": "eps",
            "drop_condition": 0.1,
        },
        "tasks": {},
    },
    "inference": {"x_0_bounds": [-1.0, 2.5], "guidance_weight": 0.4, "version": "0"},
    "step": 7,
}


@pytest.fixture(scope="module")
def params():
    return random_params(small_unet())


@pytest.mark.parametrize("names", ["mbti_jax", "guided_diffusion"])
def test_export_round_trip_is_exact(params, tmp_path, names):
    write_export(tmp_path / "model", params, METADATA, {"license": "CC0"}, names)
    assert is_export(tmp_path / "model")
    read, config = read_export(tmp_path / "model")
    assert_same_trees(read, params)
    assert {key: config[key] for key in METADATA} == METADATA
    card = (tmp_path / "model" / "README.md").read_text()
    for words in ("research use only", "Intended use", "CC0", "t1, flair", "99.5th", "[-1, 2.5]"):
        assert words in card
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("names", ["mbti_jax", "guided_diffusion"])
def test_an_export_in_float16_is_half_as_large_and_reads_back_what_it_holds(
    params, tmp_path, names
):
    write_export(tmp_path / "whole", params, METADATA, {}, names)
    write_export(tmp_path / "half", params, METADATA, {}, names, "float16")
    read, config = read_export(tmp_path / "half")
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), params)
    assert_same_trees(read, rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype(np.float32)}
    assert config["dtype"] == "float16"
    assert "(float16, tensors" in (tmp_path / "half" / "README.md").read_text()
    whole, half = (
        sum(tensor.nbytes for tensor in load_file(tmp_path / name / "model.safetensors").values())
        for name in ("whole", "half")
    )
    assert whole == 2 * half
    # Written again, what is rounded already stays as it is.
    write_export(tmp_path / "again", read, METADATA, {}, names, "float16")
    assert_same_trees(read_export(tmp_path / "again")[0], rounded)


def test_weights_that_float16_cannot_hold_are_named(params, tmp_path):
    large = jax.tree.map(lambda x: x * 1e6, params)
    with pytest.raises(ValueError, match=r"out_2/.*float16 cannot; export with dtype=float32"):
        write_export(tmp_path / "half", {"out_2": large["out_2"]}, METADATA, {}, dtype="float16")
    with pytest.raises(ValueError, match="dtype must be one of float32, float16"):
        write_export(tmp_path / "half", params, METADATA, {}, dtype="bfloat16")
    assert not [*tmp_path.iterdir()]


def test_export_in_guided_diffusion_names_loads_in_the_twin(torch, params, tmp_path):
    from benchmarks.torch_unet import TorchUNet

    write_export(tmp_path / "model", params, METADATA, "card", "guided_diffusion")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    twin = TorchUNet(**SMALL)
    twin.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=True)


def test_older_export_is_replaced_and_other_folders_are_not(params, tmp_path):
    write_export(tmp_path / "model", params, METADATA, "old")
    write_export(tmp_path / "model", params, METADATA, "new")
    assert (tmp_path / "model" / "README.md").read_text() == "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="mine is not empty"):
        write_export(tmp_path / "mine", params, METADATA, "card")


def test_an_export_is_as_readable_as_other_files(params, tmp_path):
    write_export(tmp_path / "model", params, METADATA, "A card.")
    (tmp_path / "other").write_text("x")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "other").stat().st_mode}


def test_failed_export_leaves_the_older_one(params, tmp_path):
    write_export(tmp_path / "model", params, METADATA, "old")
    with pytest.raises(TypeError):
        write_export(tmp_path / "model", params, {**METADATA, "note": object()}, "new")
    assert (tmp_path / "model" / "README.md").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def damage_weights(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def other_model(folder):
    contract = METADATA["contract"]
    edit_config(folder, contract={**contract, "model": {**MODEL_FIELDS, "num_res_blocks": 2}})


def truncate(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: truncate(folder, "model.safetensors"), "no complete safetensors file"),
        (lambda folder: truncate(folder, "config.json"), "config.json is truncated"),
        (damage_weights, "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: edit_config(folder, format_version=2), "format version 2"),
        (lambda folder: edit_config(folder, format="x"), "does not describe"),
        (lambda folder: edit_config(folder, contract={}), "lacks or has an unknown field"),
        (other_model, "missing     input_blocks_2_0/in_layers_0/scale"),
    ],
)
def test_harmed_exports_are_errors(params, tmp_path, harm, message):
    write_export(tmp_path, params, METADATA, "card")
    harm(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_export(tmp_path)


def edit_contract(folder, part, **changes):
    contract = METADATA["contract"]
    edit_config(folder, contract={**contract, part: {**contract[part], **changes}})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda f: edit_contract(f, "model", model_channels=10**9),
            "model_channels must be a whole",
        ),
        (lambda f: edit_contract(f, "model", model_channels=1e9), "model_channels must be a whole"),
        (lambda f: edit_contract(f, "model", num_res_blocks=10**6), "num_res_blocks must be"),
        (lambda f: edit_contract(f, "model", channel_mult=[1] * 10**4), "channel_mult has 10000"),
        (lambda f: edit_contract(f, "model", channel_mult=[1e300]), "channel_mult must lie"),
        (lambda f: edit_contract(f, "model", model_channels=2**16), "do not fit the model"),
        (lambda f: edit_contract(f, "model", num_groups=0), "num_groups must be"),
        (lambda f: edit_contract(f, "model", dtype="float8"), "dtype must be one of"),
        (lambda f: edit_contract(f, "model", trap=1), "model.trap is no setting"),
        (lambda f: edit_contract(f, "diffusion", num_timesteps=10**9), "num_timesteps must be"),
        (lambda f: edit_contract(f, "diffusion", schedule=["linear"]), "schedule must be one of"),
        (lambda f: edit_contract(f, "tasks", num_candidates="many"), "num_candidates must be"),
        (lambda f: edit_contract(f, "data", image_size=10**9), "image_size must be a whole"),
        (lambda f: edit_contract(f, "data", window=10**9), "window must be a whole"),
        (lambda f: edit_contract(f, "data", sequences=["t1"] * 10**5), "sequences has 100000"),
        (lambda f: edit_contract(f, "data", sequences="t1"), "sequences must be a tuple"),
        (lambda f: edit_contract(f, "data", joint="yes"), "joint must be True or False"),
        (lambda f: edit_config(f, contract=[1]), "no entry 'contract'"),
        (lambda f: edit_config(f, inference=3), "no entry 'inference'"),
        (lambda f: edit_config(f, inference={"x_0_bounds": [1, 1]}), "x_0_bounds must be"),
        (lambda f: edit_config(f, inference={"guidance_weight": "1"}), "guidance_weight must"),
        (lambda f: (f / "config.json").write_text("[" * 10**5), "is truncated or no"),
        (lambda f: (f / "config.json").write_bytes(b"\xff" * 99), "is truncated or no"),
        (lambda f: (f / "config.json").write_text(" " * 2**21), "is .*too large"),
    ],
)
def test_a_config_that_asks_for_the_impossible_is_refused_before_memory_is(
    params, tmp_path, harm, message
):
    write_export(tmp_path, params, METADATA, "card")
    harm(tmp_path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"(?s)config.json .*{message}|safetensors: .*{message}"):
        read_export(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26


def test_the_parameters_of_a_run_are_those_of_its_model(params, tmp_path):
    contract = METADATA["contract"]
    check_params(params, contract, tmp_path)
    for part, change in (("model", {"num_res_blocks": 2}), ("model", {"num_groups": 3})):
        other = {**contract, part: {**contract[part], **change}}
        with pytest.raises(ValueError, match=f"^{tmp_path}: "):
            check_params(params, other, tmp_path)


# Tasks


def test_export_task_writes_the_averaged_weights(params, tmp_path):
    state = create_state(jax.tree.map(jnp.zeros_like, params), optax.sgd(0.1))
    state = dataclasses.replace(state, ema=jax.tree.map(jnp.asarray, params))
    checkpointer = Checkpointer(
        tmp_path / "run", {k: METADATA[k] for k in ("contract", "inference")}
    )
    checkpointer.save(state)
    checkpointer.wait()
    checkpointer.close()
    config = export_config.get_config()
    with pytest.raises(ValueError, match=r"--config\.source"):
        export.main(config, str(tmp_path / "model"))
    config.source = str(tmp_path / "run")
    export.main(config, str(tmp_path / "model"))
    assert_same_trees(read_export(tmp_path / "model")[0], params)
    config.source, config.names = str(tmp_path / "model"), "guided_diffusion"
    export.main(config, str(tmp_path / "torch"))
    assert_same_trees(read_export(tmp_path / "torch")[0], params)


def import_fields(source):
    config = import_config.get_config()
    config.source = str(source)
    config.model.num_groups = SMALL["num_groups"]
    return config


def test_import_task_asks_for_what_tensors_do_not_tell(params, tmp_path):
    np.savez(tmp_path / "a.npz", **to_guided_diffusion(params))
    config = import_fields(tmp_path / "a.npz")
    with pytest.raises(ValueError) as error:
        import_torch.main(config, str(tmp_path / "model"))
    for flag in (
        "model.num_heads or model.num_head_channels",
        "model.use_new_attention_order",
        "data.image_size",
        "diffusion.schedule",
    ):
        assert flag in str(error.value)
    config.model.num_heads = 1
    config.model.use_new_attention_order = False
    config.data.image_size = 16
    config.diffusion.schedule = "cosine"
    import_torch.main(config, str(tmp_path / "model"))
    read, described = read_export(tmp_path / "model")
    assert_same_trees(read, params)
    assert described["contract"]["data"]["window"] == 16
    assert described["contract"]["diffusion"]["schedule"] == "cosine"
    assert described["contract"]["model"]["channel_mult"] == [1, 2]


def test_import_of_the_published_networks(goldens, tmp_path):
    for file in sorted(goldens.glob("unet_*.npz")):
        golden = json.loads(str(np.load(file)["config"]))
        if golden["num_classes"] != 5 or golden["out_channels"] != golden["in_channels"] - 5:
            continue
        config = import_config.get_config()
        config.source = str(file)
        for name in ("num_heads", "num_head_channels", "num_heads_upsample", "num_groups"):
            if name in golden:
                config.model[name] = golden[name]
        config.model.use_new_attention_order = golden.get("use_new_attention_order", False)
        config.data.image_size = golden["image_size"]
        config.diffusion.schedule = "linear"
        import_torch.main(config, str(tmp_path / file.stem))
        params, _ = read_export(tmp_path / file.stem)
        assert_same_trees(params, from_guided_diffusion(read_state_dict(file), UNet(**golden)))


def test_import_leaves_out_a_learned_variance(tmp_path):
    model = small_unet(out_channels=2)
    state_dict = to_guided_diffusion(random_params(model))
    fields = import_fields("unused").to_dict()
    fields["model"] |= {"num_heads": 1, "use_new_attention_order": False}
    fields["data"]["image_size"], fields["diffusion"]["schedule"] = 16, "linear"
    contract, kept = import_torch.describe(state_dict, fields)
    np.testing.assert_array_equal(kept["out.2.weight"], state_dict["out.2.weight"][:1])
    np.testing.assert_array_equal(kept["out.2.bias"], state_dict["out.2.bias"][:1])
    assert contract["data"]["joint"] is False


@pytest.mark.parametrize(
    "options", [{"num_classes": 0}, {"in_channels": 8}, {"out_channels": 3}], ids=str
)
def test_import_of_a_network_for_something_else_is_an_error(options):
    state_dict = to_guided_diffusion(random_params(small_unet(**options)))
    with pytest.raises(ValueError, match="cannot inpaint"):
        import_torch.describe(state_dict, import_fields("unused").to_dict())


def test_an_export_of_version_0_1_is_read(params, tmp_path):
    """Its contract said `together`, and no process; a regression was a prediction."""
    contract = METADATA["contract"]
    data = {("together" if k == "joint" else k): v for k, v in contract["data"].items()}
    for prediction, process in (("eps", "gaussian"), ("regression", "regression")):
        diffusion = {**contract["diffusion"], "prediction": prediction}
        del diffusion["process"]
        if prediction == "regression":
            diffusion |= {"schedule": "cosine", "num_timesteps": 1, "drop_condition": 0.0}
        old = {**METADATA, "contract": {**contract, "data": data, "diffusion": diffusion}}
        write_export(tmp_path / prediction, params, old, "card")
        read, config = read_export(tmp_path / prediction)
        assert_same_trees(read, params)
        assert config["contract"]["data"] == contract["data"]
        assert config["contract"]["diffusion"]["process"] == process
