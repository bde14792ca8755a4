r"""Inpaints files: cases, volumes or single slices.

    # Volumes of a case, and a binary mask of what shall become edema:
    mbti inpaint -i t1=t1.nii.gz t1ce=t1ce.nii.gz t2=t2.nii.gz flair=flair.nii.gz \
        -m mask.nii.gz --tissue edema -o out

    # The same with an ROI map from ITK-SNAP or 3D Slicer:
    mbti inpaint -i t1=t1.nii.gz t1ce=t1ce.nii.gz t2=t2.nii.gz flair=flair.nii.gz \
        -m roi.nii.gz --roi_labels "1:edema, 2:normal" -o out

    # Normal tissue in place of the case's own tumor:
    mbti inpaint -i t1=t1.nii.gz t1ce=t1ce.nii.gz t2=t2.nii.gz flair=flair.nii.gz seg=seg.nii.gz \
        -c brats2021 --remove -o out

    # Normal tissue in the box of the tumor, in every case of a folder:
    mbti inpaint -i DIR -c brats2021 --remove --box normal -o out --model runs/paper

    # One slice:
    mbti inpaint -i slice.png -m mask.png --tissue edema -o out --intensity_range 0.0,900.0

    # Cases of BraTS's local-inpainting task (*-t1n-voided and *-mask):
    mbti inpaint -i DIR --layout brats_inpainting -o out --model runs/paper

    # The mean of eight samples, and their standard deviation:
    mbti inpaint -i DIR -c brats2021 --remove --samples 8 --mean -o out --model runs/paper

    # A labeled set for nnU-Net:
    mbti inpaint -i DIR -c brats2021 --move --samples 3 --layout nnunet \
        -o Dataset101_Synthetic --model runs/paper

    # A follow-up series of every case, of four steps of 3 mm:
    mbti inpaint -i DIR -c brats2021 --grow 3 --samples 4 -o series --model runs/paper

Results go to the output folder, a folder for each case and sample; the same command again makes what is
missing. `python run.py --config=configs/inpaint.py` takes the fields below as --config.FIELD=VALUE.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "inpaint"
    # Folder for the results.
    config.workdir = "inpainted"
    # Folder of a training run, an exported model, or "phantom", the bundled model, in whose place
    # "phantom_single" paints images that lack one of its four sequences, one sequence at a time.
    config.checkpoint = "phantom"
    # Slices sampled at once over all devices. Left open: 4 on a CPU and 16 elsewhere, or as many as
    # there are where that is known to be less: for a single slice, and for those that `slices` names.
    config.batch_size = placeholder(int)

    # files; brats_inpainting: *-t1n-voided and *-mask in, *-t1n-inference.nii.gz out; nnunet: images
    # with label maps, nnU-Net's raw dataset; boxes and mixed tumors too, if the model has a label head.
    config.layout = "files"
    # What to inpaint. Either a folder of cases of a named convention; `subjects` picks some of them.
    config.source = ""
    config.convention = ""
    config.subjects = ()
    # Or the volumes of one case, and if something becomes of its own tumor (`tumor`), its segmentation,
    # whose numbers are those of `convention`.
    config.images = ConfigDict({"t1": "", "t1ce": "", "t2": "", "flair": "", "seg": ""})
    # Or one slice, PNG or npy, 0 being background; "slice_{sequence}.png" for a file for each sequence
    # (`sequences` below; else those that the model paints together, or of one at a time those that
    # exist).
    config.image = ""

    # Where. Either a label map (NIfTI; PNG or npy for a slice), {subject} in its name standing for the
    # case; and what its numbers mean: a convention, a mapping such as "1:edema, 2:normal", or the one
    # ROI that a binary mask is, with any one number inside: normal, necrotic_core, edema, enhancement or
    # tumor. Left open: 1 necrotic_core, 2 edema, 3 enhancement, 5 normal, 6 tumor.
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

    # Of the noise, and of what is drawn for the ROIs.
    config.seed = 0
    # How many different results to make, or steps of a series.
    config.num_samples = 1
    # sample: each sample is a result. mean: their mean is, with the standard deviation beside it; nearer
    # to the truth and smoother than any image. near_mean: samples whose large structures are the mean's,
    # so that only their texture is drawn. Means for registration, FreeSurfer and metrics of local
    # inpainting, samples for synthetic sets. Left open: near_mean where normal tissue alone is
    # painted (a tumor is removed, an ROI file can hold nothing else), else sample.
    config.estimate = placeholder(str)
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
    # Below 0: what the checkpoint recommends, and 0 for mean_passes=1 and for near_mean.
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
    # How far along z neighboring slices share their noise, sigma in mm; 0 for independent noise. Left
    # open, it is what a model that sees neighbors was trained with, if anything, and else 2. Models see
    # neighbors with noise as in training only: `phantom_single` with 0; it flickers then.
    config.z_sigma_mm = placeholder(float)
    # Sample every volume again with independent noise, to compare the continuity along z.
    config.compare_noise = False
    # local: one sample after the other on this machine. ray: on a cluster (pip install "mbti-jax[ray]"),
    # with the same results; see docs/sets_on_a_cluster.md.
    config.engine = "local"
    # address: of the head node, empty for RAY_ADDRESS or, without that, this machine alone. workers: 0
    # for one for each GPU, or for each node without any. cpus: cores of a worker. retries: how often a
    # sample whose worker died is tried again.
    config.ray = ConfigDict({"address": "", "workers": 0, "cpus": 1, "retries": 2})
    # Without Ray: which of so many shares this process makes, from 0; auto takes both numbers from a
    # SLURM array, and the first from an indexed Job. merge: once all are made, what describes the set.
    config.piece = ""
    config.pieces = 0

    # (low, high) of a single slice's scale; empty for its own percentiles. Volumes have their own.
    config.intensity_range = ()
    return config
