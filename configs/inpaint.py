"""Inpaints files: cases, volumes or single slices.

    # Normal tissue in the box of the tumor, in every case of a folder:
    python run.py --config=configs/inpaint.py --config.checkpoint=runs/paper \\
        --config.source=DIR --config.convention=brats2021 --config.tumor=remove \\
        --config.box='("normal",)'

    # Volumes and an ROI drawn in ITK-SNAP or 3D Slicer:
    python run.py --config=configs/inpaint.py --config.checkpoint=runs/paper \\
        --config.images.t1=t1.nii.gz --config.roi=roi.nii.gz --config.roi_labels='1:edema, 2:normal'

    # One slice:
    python run.py --config=configs/inpaint.py --config.checkpoint=runs/paper \\
        --config.image=slice.png --config.roi=roi.png --config.intensity_range='(0.0, 900.0)'

    # Cases of BraTS's local-inpainting task (*-t1n-voided and *-mask):
    python run.py --config=configs/inpaint.py --config.checkpoint=runs/paper \\
        --config.layout=brats_inpainting --config.source=DIR

    # The mean of eight samples, and their standard deviation:
    python run.py --config=configs/inpaint.py --config.checkpoint=runs/paper \\
        --config.source=DIR --config.convention=brats2021 --config.tumor=remove \\
        --config.estimate=mean --config.num_samples=8

    # A labeled set for nnU-Net:
    python run.py --config=configs/inpaint.py --config.checkpoint=runs/paper --config.layout=nnunet \\
        --config.source=DIR --config.convention=brats2021 --config.tumor=move --config.num_samples=3 \\
        --workdir=Dataset101_Synthetic

    # A follow-up series of every case, of four steps of 3 mm:
    python run.py --config=configs/inpaint.py --config.checkpoint=runs/paper --config.source=DIR \\
        --config.convention=brats2021 --config.tumor=grow --config.step_mm=3 --config.num_samples=4

Results go to the workdir, a folder for each case and sample; the same command again makes what is
missing.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "inpaint"
    config.workdir = "inpainted"
    # Folder of a training run, an exported model, or "phantom", the bundled model.
    config.checkpoint = "phantom"
    # Slices sampled at once over all devices.
    config.batch_size = 16

    # files; brats_inpainting: *-t1n-voided and *-mask in, *-t1n-inference.nii.gz out; nnunet: images
    # with label maps, nnU-Net's raw dataset; boxes and mixed tumors too, if the model has a label head.
    config.layout = "files"
    # What to inpaint. Either a folder of cases of a named convention; `subjects` picks some of them.
    config.source = ""
    config.convention = ""
    config.subjects = ()
    # Or the volumes of one case.
    config.images = ConfigDict({"t1": "", "t1ce": "", "t2": "", "flair": ""})
    # Or one slice, PNG or npy, 0 being background; "slice_{sequence}.png" for a file for each sequence
    # (those that the model knows, or `sequences` below).
    config.image = ""

    # Where. Either a label map (NIfTI; PNG or npy for a slice), {subject} in its name standing for the
    # case; and what its numbers mean: a convention, or a mapping such as "1:edema, 2:normal".
    # Without one: 1 necrotic_core, 2 edema, 3 enhancement, 5 normal, 6 tumor.
    config.roi = ""
    config.roi_labels = ""
    # Or the case's own tumor: remove, replace, random, move, grow or shrink; or several with their
    # shares, "box" standing for bounding boxes alone: "replace: 2, random box: 1, move: 1".
    config.tumor = ""
    # By how many millimeters grow and shrink change it. The samples are steps of a series then: each
    # starts from the one before.
    config.step_mm = 2.0
    # How many millimeters ROIs of normal tissue reach beyond what is given. Left open: 3 around a tumor
    # that is removed or moved, whose blurred rim lies outside its outline, and 0 around ROIs of a file.
    config.dilate_mm = placeholder(float)
    # Whether normal tissue goes over into its surroundings without a step: a smooth function is added
    # inside the ROI (Poisson blending). Left open: where a tumor is removed or moved.
    config.blend = placeholder(bool)
    # ROIs to be treated as bounding boxes: normal, necrotic_core, edema, enhancement, tumor.
    config.box = ()
    # Slices by number; empty for all that have an ROI.
    config.slices = ()
    # Sequences to inpaint; empty for all that the model knows.
    config.sequences = ()

    config.seed = 0
    config.num_samples = 1
    # sample: each sample is a result. mean: their mean is, with the standard deviation beside it; nearer
    # to the truth and smoother than any image. Means for registration, FreeSurfer and metrics of local
    # inpainting, samples for synthetic sets.
    config.estimate = "sample"
    # 1: the mean in a single pass of the network, without samples and their standard deviation.
    config.mean_passes = placeholder(int)
    # These three: what the checkpoint recommends, else 8 steps of unipc, spaced as suits the sampler.
    config.num_steps = placeholder(int)
    # ddim, dpmpp_2m, unipc, euler or heun (two evaluations of the network a step, but for the last);
    # consistency for models of configs/few_step.py.
    config.sampler = placeholder(str)
    # Of the timesteps: trailing; cubic, for few steps of dpmpp_2m, unipc and heun; or ddim for
    # guided-diffusion's ddimN, with N = num_steps.
    config.spacing = placeholder(str)
    # Below 0: what the checkpoint recommends, and 0 for mean_passes=1.
    config.guidance_weight = -1.0
    # plain; or, against the saturation of high weights, projected or rescaled.
    config.guidance = "plain"
    # Noise shares between which it guides: 0 is the image, 1 noise alone. Elsewhere it costs nothing.
    config.guidance_interval = (0.0, 1.0)
    # Of projected guidance: share of the saturating part that is taken away, 0 to 1, and the bound of
    # the root mean square of the update, in the model's units (-1 is background, 1 bright brain).
    config.guidance_damping = 1.0
    config.guidance_max_rms = 0.05
    # Of rescaled guidance: 0 is plain, 1 gives back the standard deviation without guidance.
    config.guidance_rescale = 0.7
    # Share of fresh noise, for ddim only: 0 is deterministic, 1 ancestral sampling.
    config.eta = 0.0
    # How far along z neighboring slices share their noise, sigma in mm; 0 for independent slices. Left
    # open, it is 0 for models that see neighboring slices, which were trained so, and 2 for others: on
    # phantoms that makes the step between slices painted one by one that of the tissue around them,
    # 0.04 of the range; it is 0.11 to 0.16 with independent noise and 0.03 with 4 mm.
    config.z_sigma_mm = placeholder(float)
    # Sample every volume again with independent noise, to compare the continuity along z.
    config.compare_noise = False
    # (low, high) of a single slice's scale; empty for its own percentiles. Volumes have their own.
    config.intensity_range = ()
    return config
