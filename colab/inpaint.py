# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     provenance: []
#   jupytext:
#     cell_metadata_filter: cellView,nbmake,-all
#     notebook_metadata_filter: accelerator,colab,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Multitask brain-tumor inpainting
#
# The project has no public address yet, so there is no badge here: open this file in Colab with File >
# Upload notebook, and fill in REPOSITORY below.
#
# A diffusion model repaints chosen regions of an axial brain MRI slice: with tumor components
# (necrotic core, edema, enhancement), with a tumor that it composes itself, or with normal
# tissue; each region free-form or given as a bounding box. The method is that of Rouzrokh et al.
# 2022 ([arXiv:2210.12113](https://arxiv.org/abs/2210.12113)).
#
# **Everything that comes out of it is synthetic. Research use only: not a medical device, not for
# diagnosis.** The model that is shipped with the package was trained on digital phantoms and knows
# nothing else; for patients' images load a model that was trained on such.
#
# Run the cells from top to bottom. The first figure takes about a minute after the installation.

# %% cellView="form"
# @title 1. Install
# @markdown What to install from when the notebook does not lie in a checkout of the project:
# @markdown anything that pip takes, such as `git+https://...`, or the path of a wheel or a folder.
import importlib
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

REPOSITORY = ""  # @param {type:"string"}


def installed_versions():
    return {d.name: d.version for d in metadata.distributions() if d.name}


before = installed_versions()
if "mbti-jax" not in before:
    folders = (Path.cwd(), Path.cwd().parent)
    source = REPOSITORY or next((str(f) for f in folders if (f / "tfds_brats").is_dir()), "")
    if not source:
        raise ValueError(
            "the project has no public address yet, and this notebook does not lie in a checkout of it: "
            "fill in REPOSITORY with what pip shall install, such as the path of an uploaded wheel"
        )
    # The runtime's JAX fits its accelerator, so it stays as it is, and so does NumPy, which may be
    # loaded already: pip has to choose versions of everything else that go with them.
    kept = [name for name in before if name.startswith(("jax", "libtpu", "nvidia", "numpy"))]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={before[name]}\n" for name in kept))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints]
        subprocess.run([*pip, source], check=True)
    importlib.invalidate_caches()
    after = installed_versions()
    changed = [name for name in kept if after.get(name) != before[name]]
    if changed:
        raise RuntimeError(f"the installation changed {', '.join(changed)}; restart the runtime")
print("mbti-jax", metadata.version("mbti-jax"), "with JAX", metadata.version("jax"))

# %% cellView="form"
# @title 2. What there is to compute with
import shutil

import jax

IN_COLAB = "google.colab" in sys.modules
platform = jax.default_backend()
print(f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind} ({platform})")
if platform == "cpu":
    if shutil.which("nvidia-smi"):
        print("There is a GPU, but the installed JAX does not use it; JAX is left as it is.")
    elif IN_COLAB:
        print("Faster: Runtime > Change runtime type > GPU or TPU, then run all cells again.")
    print("On a CPU keep NUM_STEPS small.")

# %% cellView="form" nbmake={"mock": {"NUM_STEPS": 2, "WEIGHTS": "1, 40", "NUM_SEEDS": 2}}
# @title 3. Settings
# @markdown Model: the one that is shipped (digital phantoms only); or a training run's folder, or an
# @markdown exported model, on this machine or on Google Drive; or an exported model's files, uploaded.
MODEL = "shipped"  # @param ["shipped", "folder", "Google Drive", "upload"]
# @markdown Folder of the model; on Drive below `My Drive`.
MODEL_FOLDER = ""  # @param {type:"string"}
SEED = 0  # @param {type:"integer"}
# @markdown Denoising steps: 8 of the default sampler do what 250 of DDIM do; the paper took 1000.
NUM_STEPS = 8  # @param {type:"slider", min:1, max:1000, step:1}
# @markdown `recommended` is what the model is for, else unipc; ddim wants 50 steps.
SAMPLER = "recommended"  # @param ["recommended", "ddim", "dpmpp_2m", "unipc", "euler", "heun"]
GUIDANCE_WEIGHT = 0.4  # @param {type:"number"}
# @markdown Millimeters of its surroundings that a removed tumor takes with it.
DILATE_MM = 3.0  # @param {type:"number"}
# @markdown Does normal tissue go over into its surroundings without a step?
BLEND = True  # @param {type:"boolean"}
# @markdown The sequence that is shown.
SEQUENCE = "flair"  # @param ["t1", "t1ce", "t2", "flair"]
# @markdown Which regions become bounding boxes in the predictions with boxes?
BOX_NECROTIC_CORE = False  # @param {type:"boolean"}
BOX_EDEMA = True  # @param {type:"boolean"}
BOX_ENHANCEMENT = False  # @param {type:"boolean"}
BOX_TUMOR = True  # @param {type:"boolean"}
BOX_NORMAL = True  # @param {type:"boolean"}
# @markdown Guidance weights and number of seeds to compare in scenarios 4 and 5.
WEIGHTS = "1, 2, 5, 10, 20, 40"  # @param {type:"string"}
NUM_SEEDS = 6  # @param {type:"integer"}

# %% cellView="form"
# @title 4. Load the model
from mbti_jax import Inpainter, Rois, Sampling
from mbti_jax.diffusion.sampling import has_mean

if MODEL in ("Google Drive", "upload") and not IN_COLAB:
    raise ValueError(f"MODEL = {MODEL!r} works in Colab only; here choose 'folder'")
model = "phantom" if MODEL == "shipped" else MODEL_FOLDER
if MODEL == "Google Drive":
    from google.colab import drive

    drive.mount("/content/drive")
    model = str(Path("/content/drive/MyDrive") / MODEL_FOLDER)
elif MODEL == "upload":
    from google.colab import files

    print("Choose config.json and model.safetensors of the exported model.")
    model = "uploaded_model"
    Path(model).mkdir(exist_ok=True)
    for name, content in files.upload().items():
        (Path(model) / Path(name).name).write_bytes(content)
if not model:
    raise ValueError("fill in MODEL_FOLDER")

# One slice at a time.
inpainter = Inpainter.load(model, batch_size=1)
NOTE = inpainter.checkpoint["note"]
print(NOTE or "The checkpoint has no note on what it was trained with.")
print(f"{inpainter.image_size} x {inpainter.image_size} pixels, sequences", *inpainter.sequences)

# %% [markdown]
# ## A slice to work on
#
# A digital phantom that the bundled model has not seen: it was trained on those of seed 0. The
# slice is the one that shows all three components best.

# %% cellView="form"
# @title 5. Make a phantom
import numpy as np

from mbti_jax.io import pictures
from tfds_brats.cases import read_case
from tfds_brats.phantom import write_phantoms
from tfds_brats.search import find_cases
from tfds_brats.slices import bounding_box, to_slices

PHANTOM_SEED = 1  # @param {type:"integer"}

write_phantoms(f"phantoms/{PHANTOM_SEED}", num_subjects=1, seed=PHANTOM_SEED)
(phantom_files,) = find_cases(f"phantoms/{PHANTOM_SEED}", "phantom")
# A model of one sequence paints the one that is shown, one of several paints all of them together.
sequences = (SEQUENCE,) if inpainter.num_channels == 1 else inpainter.sequences
if SEQUENCE not in inpainter.sequences:
    raise ValueError(f"the model knows {', '.join(inpainter.sequences)}; choose another SEQUENCE")


def slice_of(case, number, sequences=sequences):
    """Slice of a case, and what the model has to know of the volume that it is from."""
    image = np.stack([to_slices(case.values(name))[number] for name in sequences], axis=-1)
    scales = [case.scale(name) for name in sequences]
    volume = {
        "intensity_range": [(scale.low, scale.high) for scale in scales],
        "brain_box": bounding_box(to_slices(case.brain)),
        "pixel_size": case.spacing[1::-1],
        "slice_index": number,
    }
    return image, volume


phantom = read_case(phantom_files, sequences)
all_labels = to_slices(phantom.labels)
areas = np.stack([(all_labels == label).sum((1, 2)) for label in (1, 2, 3)])
number = int(areas.min(0).argmax())
if not areas[:, number].all():
    raise ValueError(
        "this phantom has no slice with all three components; try another PHANTOM_SEED"
    )
image, volume = slice_of(phantom, number)
labels = all_labels[number]
print(f"slice {number}: core, edema and enhancement have {areas[:, number]} pixels")

# %% cellView="form"
# @title 6. How to paint and to show
from IPython.display import Image, display

from mbti_jax.io.progress import progress_bar
from mbti_jax.rois.tumors import own_tumor

RESULTS = Path("inpainted")
chosen = {
    "necrotic_core": BOX_NECROTIC_CORE,
    "edema": BOX_EDEMA,
    "enhancement": BOX_ENHANCEMENT,
    "tumor": BOX_TUMOR,
    "normal": BOX_NORMAL,
}


def boxes_of(*rois):
    """Those of the named regions that were ticked to be boxes."""
    return tuple(name for name in rois if chosen[name])


METHOD = None if SAMPLER == "recommended" else SAMPLER


def paint(mode, box=(), seed=SEED, weight=GUIDANCE_WEIGHT):
    """Repaints the slice's own tumor; see `tumors.MODES` for the modes."""
    brain = (image != 0).any(-1)
    rois = own_tumor(labels[None], brain[None], mode, box, SEED, dilate_mm=DILATE_MM)[0]
    # What is removed is best replaced by what is near to the truth and looks like tissue.
    near = mode == "remove" and has_mean(inpainter.pipeline.process)
    estimate = "near_mean" if near else "sample"
    sampling = Sampling(
        NUM_STEPS, METHOD, seed=seed, guidance=weight, estimate=estimate, blend=BLEND
    )
    with progress_bar(f"{mode}, w = {weight:g}, seed {seed}") as progress:
        return inpainter.inpaint(image, rois, sampling, labels=labels, progress=progress, **volume)


def show(name, title, before, results, sequences=sequences):
    """Draws input, ROIs and results {label: InpaintedSlice}; the ROIs again wherever they change.

    What is shown is the brain.

    A model with a label head says what it painted: the components are outlined in their colors.
    """
    channel = sequences.index(SEQUENCE)
    (low, high) = next(iter(results.values())).provenance["intensity"]["low_high"][channel]
    window = pictures.around((before != 0).any(-1))
    shown = pictures.gray(before[..., channel], low, high)[window]
    cells, columns, last = [shown], ["input"], None
    for label, result in results.items():
        if last is None or (result.rois.masks != last).any():
            last = result.rois.masks
            cells.append(pictures.with_rois(shown, last[window], fill=0.2))
            columns.append("ROIs")
        cells.append(pictures.gray(result.images[0][window][..., channel], low, high))
        columns.append(label)
        if result.label_probabilities is not None:
            cells.append(pictures.with_labels(cells[-1], result.labels[0][window]))
            columns.append("labels")
    path = pictures.figure(
        RESULTS / f"{name}.png",
        [cells],
        rows=[SEQUENCE.upper()],
        columns=columns,
        title=f"{title}\n{NOTE}".rstrip(),
        footnote=f"synthetic inside the ROIs, not for diagnosis; {NUM_STEPS} steps",
        marks=pictures.Marks(
            pictures.kinds_in(*(result.rois.masks for result in results.values())),
            ["RL"] * len(columns),
        ),
    )
    display(Image(str(path)))


# %% [markdown]
# ## The paper's five scenarios
#
# **Scenario 1**: the components of the tumor are given, and the model paints another tumor of
# just these components (the paper's figure 3). Where edema is a box, the model decides what of it
# is edema.

# %%
# @title Scenario 1: components
box = boxes_of("necrotic_core", "edema", "enhancement")
results = {"free-form": paint("replace"), f"box: {', '.join(box) or 'none'}": paint("replace", box)}
show("scenario_1", "Components in given ROIs", image, results)

# %% [markdown]
# **Scenario 2**: only the whole is given, and the model chooses the components (figure 4).

# %%
# @title Scenario 2: a tumor of the model's choice
results = {"free-form": paint("random"), "box": paint("random", ("tumor",))}
show("scenario_2", "Tumor with components of the model's choice", image, results)

# %% [markdown]
# **Scenario 3**: normal tissue instead of the tumor (figure 5). A box also takes the
# surroundings that the tumor has pushed aside.

# %%
# @title Scenario 3: normal tissue
results = {"free-form": paint("remove"), "box": paint("remove", ("normal",))}
show("scenario_3", "Normal tissue instead of the tumor", image, results)

# %% [markdown]
# **Scenario 4**: the same seed with a rising guidance weight (figure 6). High weights exaggerate.

# %%
# @title Scenario 4: guidance weight
box = boxes_of("tumor")
weights = [float(weight) for weight in WEIGHTS.split(",")]
results = {f"w = {weight:g}": paint("random", box, weight=weight) for weight in weights}
show("scenario_4", "One seed, rising guidance weight", image, results)

# %% [markdown]
# **Scenario 5**: different seeds (figure 7).

# %%
# @title Scenario 5: seeds
results = {f"seed {seed}": paint("random", box, seed) for seed in range(SEED, SEED + NUM_SEEDS)}
show("scenario_5", "Different seeds", image, results)

# %% [markdown]
# **Several tasks in one pass** (figure 1B): the tumor gives way to normal tissue, and its
# components appear elsewhere.

# %%
# @title Removal and insertion
results = {"free-form": paint("move"), "normal tissue as box": paint("move", boxes_of("normal"))}
show("removal_and_insertion", "Removal and insertion in the same pass", image, results)

# %% [markdown]
# ## Your own slice
#
# A NIfTI volume or a single slice as gray PNG or npy, skull-stripped: background is 0. A model that
# paints several sequences together wants a file of each. The bundled models, one for all four together
# and one for single sequences, paint phantom tissue into whatever they are given.

# %% cellView="form"
# @title 7. Load your own slice
# @markdown Path of the image; empty for the phantom's. For several sequences write `{sequence}` where
# @markdown the files' names have t1, t1ce, t2 and flair. Or upload them (in Colab), in this order.
# @markdown One file alone is `SEQUENCE`, chosen above; instead of the shipped model its twin for
# @markdown single sequences paints it.
from mbti_jax.inference.inputs import named_files
from mbti_jax.io.slices import read_sequences

IMAGE = ""  # @param {type:"string"}
UPLOAD_IMAGE = False  # @param {type:"boolean"}
# @markdown Number of the slice in a NIfTI volume, from below.
SLICE = 62  # @param {type:"integer"}

paths = {name: IMAGE.replace("{sequence}", name) for name in sequences} if IMAGE else {}
if len({*paths.values()}) > 1 and MODEL == "shipped":
    paths = {name: path for name, path in paths.items() if Path(path).is_file()} or paths
paths = paths or {name: str(phantom_files.images[name]) for name in sequences}
if UPLOAD_IMAGE:
    if not IN_COLAB:
        raise ValueError("upload works in Colab only; here fill in IMAGE")
    from google.colab import files

    uploaded = files.upload()
    if len(uploaded) not in (1, len(sequences)):
        raise ValueError(f"the model paints {', '.join(sequences)}: choose one file of each")
    for name, content in uploaded.items():
        Path(name).write_bytes(content)
    names = [*uploaded] if len(uploaded) > 1 else [*uploaded] * len(sequences)
    paths = dict(zip(sequences, names, strict=True))
if SEQUENCE not in paths:
    raise ValueError(f"there is no file of {SEQUENCE}, which is shown; choose another SEQUENCE")
source, own_sequences = Path(paths[SEQUENCE]), tuple(paths)
if source.name.endswith((".nii", ".nii.gz")):
    if len({*paths.values()}) == 1:
        paths, own_sequences = {SEQUENCE: str(source)}, (SEQUENCE,)
    case = read_case(named_files(paths), own_sequences, labels=False)
    own_image, own_volume = slice_of(case, SLICE, own_sequences)
else:
    # One file may hold all sequences, an npy of [H, W, C].
    own_files = [Path(path) for path in dict.fromkeys(paths.values())]
    own_image, own_volume = np.atleast_3d(read_sequences(own_files)), {}
    if own_image.shape[-1] == 1:
        own_sequences = (SEQUENCE,)
    elif own_image.shape[-1] != len(own_sequences):
        raise ValueError(
            f"{source.name} has {own_image.shape[-1]} sequences, and nothing says which: one file may "
            f"hold {', '.join(sequences)}, or one of them"
        )
own_inpainter = inpainter
if MODEL == "shipped" and not inpainter.paints(own_image.shape[-1]):
    own_inpainter = Inpainter.load("phantom_single", batch_size=1)
    print(f"not all of {', '.join(sequences)}: the model is phantom_single")
print(f"{own_image.shape[0]} x {own_image.shape[1]} pixels from {source.name}")

# %% cellView="form"
# @title 8. Choose a region { run: "auto" }
# @markdown In Colab the picture follows the sliders. The region is an ellipse, or the rectangle around
# @markdown it as a bounding box. Row 0 is at the top; L and R are the patient's left and right.
from matplotlib.figure import Figure
from skimage.draw import ellipse

TISSUE = "edema"  # @param ["normal", "necrotic_core", "edema", "enhancement", "tumor"]
AS_BOX = False  # @param {type:"boolean"}
TOP = 90  # @param {type:"slider", min:0, max:255, step:1}
LEFT = 90  # @param {type:"slider", min:0, max:255, step:1}
HEIGHT = 40  # @param {type:"slider", min:1, max:256, step:1}
WIDTH = 30  # @param {type:"slider", min:1, max:256, step:1}

mask = np.zeros(own_image.shape[:2], bool)
rows, columns = ellipse(
    TOP + (HEIGHT - 1) / 2, LEFT + (WIDTH - 1) / 2, HEIGHT / 2, WIDTH / 2, shape=mask.shape
)
mask[rows, columns] = True
rois = Rois.of({TISSUE: mask}, mask.shape, box=(TISSUE,) if AS_BOX else ())
channel = own_sequences.index(SEQUENCE)
seen = own_image[..., channel][own_image[..., channel] != 0]
picture = pictures.gray(own_image[..., channel], *np.percentile(seen, [0.5, 99.5]))
figure = Figure(figsize=(6, 6))
axis = figure.subplots()
axis.imshow(pictures.with_rois(picture, rois.masks, fill=0.2))
axis.set(xticks=range(0, mask.shape[1], 20), yticks=range(0, mask.shape[0], 20))
axis.set(title=f"{SEQUENCE.upper()}, {int(rois.union.sum())} pixels", xlabel="R          L")
axis.grid(alpha=0.2)
RESULTS.mkdir(exist_ok=True)
figure.savefig(RESULTS / "region.png", bbox_inches="tight")
display(Image(str(RESULTS / "region.png")))

# %% cellView="form"
# @title 9. Paint the region
from mbti_jax.io.files import write_json
from mbti_jax.io.slices import write_slice

NUM_SAMPLES = 1  # @param {type:"integer"}
# @markdown `sample`: brains that could be there. `mean`: the mean of at least two samples, nearer to the
# @markdown truth and smoother than any brain, with its standard deviation. `near_mean`: samples whose
# @markdown large structures are the mean's, for normal tissue.
ESTIMATE = "sample"  # @param ["sample", "near_mean", "mean"]

with progress_bar("your slice") as progress:
    result = own_inpainter.inpaint(
        own_image,
        rois,
        Sampling(
            NUM_STEPS,
            METHOD,
            seed=SEED,
            guidance=GUIDANCE_WEIGHT,
            estimate=ESTIMATE,
            blend=BLEND,
        ),
        num_samples=NUM_SAMPLES,
        progress=progress,
        **own_volume,
    )
for warning in result.provenance["warnings"]:
    print("Note:", warning)
title = f"{TISSUE.replace('_', ' ')} in {source.name}"
show("own_slice", title, own_image, {"inpainted": result}, own_sequences)
for n, sample in enumerate(result.images):
    # Outside the region these are the numbers of the input.
    write_slice(RESULTS / f"own_slice_{n:03d}.npy", sample)
    if result.labels is not None:
        # 1 necrotic core, 2 edema, 3 enhancement; of a box without a label head nobody knows.
        write_slice(RESULTS / f"own_slice_{n:03d}-seg.png", result.labels[n])
if result.std is not None:
    write_slice(RESULTS / "own_slice_std.npy", result.std)
write_json(RESULTS / "own_slice.json", result.provenance)

# %%
# @title 10. Results
# @markdown Pictures, the slice as npy, its label map as PNG, and its provenance record.
archive = shutil.make_archive("inpainted", "zip", RESULTS)
print(*sorted(path.name for path in RESULTS.iterdir()), sep="\n")
if IN_COLAB:
    from google.colab import files

    files.download(archive)
