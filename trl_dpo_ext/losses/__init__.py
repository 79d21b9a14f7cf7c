"""Loss variants, one module per family, and every variant by its name: `from trl_dpo_ext.losses import dpop`.

Importing this package declares them all. A variant is a pure function of `Pairs`, or of `Lists` in the `list_` modules;
one with a running state is a class, whose instances are such functions.
"""

from .asymmetric import anc_dpo, bdpo, bpo, dpo_shift, dpop, hdpo, mappo, minor_dpo
from .batch_statistics import amapo, dr_dpo, gamma_po, kldpo
from .confidence import focalpo, ropo, uni_dpo
from .entropy import mallows_dpo, rainbowpo
from .likelihood import arpo, cpo, dpo_nll, orpo, sft, slic_hf
from .link_functions import cauchy, chipo, discopop, gpo_exp, gpo_savage, gpo_truncquad, hinge, sympo
from .list_lambda import lipo, lipo_normalized
from .list_ranking import pl, pl_reference_free, rrhf, top1
from .list_targets import infonca, nca, qrpo_list, sppo_list
from .logistic import cdpo, centered, exo_pair, robust, sigmoid, sigmoid_norm
from .offset import margin, odpo, rdpo
from .optimal_transport import aot, aot_unpaired
from .pointwise import BcoPairDelta as bco_pair_delta
from .pointwise import apo_down, apo_zero, bco_pair, kto_pair, nca_pair
from .reference_free import alphapo, confpo, repo, simper, simpo
from .regression import cal_dpo, ipo, ipo_sum, qrpo, rpo_sq, sppo, sppo_hard
from .running_statistics import AlphaDpo as alpha_dpo
from .running_statistics import BetaDpo as beta_dpo
from .soft_labels import rpo_bwd, rpo_fwd, soft_dpo, soft_dpo_p
from .token_level import SamPO as sampo
from .token_level import d2po, tdpo1, tdpo2, tis_dpo, unlikelihood

__all__ = [
    "alpha_dpo",
    "alphapo",
    "amapo",
    "anc_dpo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "arpo",
    "bco_pair",
    "bco_pair_delta",
    "bdpo",
    "beta_dpo",
    "bpo",
    "cal_dpo",
    "cauchy",
    "cdpo",
    "centered",
    "chipo",
    "confpo",
    "cpo",
    "d2po",
    "discopop",
    "dpo_nll",
    "dpo_shift",
    "dpop",
    "dr_dpo",
    "exo_pair",
    "focalpo",
    "gamma_po",
    "gpo_exp",
    "gpo_savage",
    "gpo_truncquad",
    "hdpo",
    "hinge",
    "infonca",
    "ipo",
    "ipo_sum",
    "kldpo",
    "kto_pair",
    "lipo",
    "lipo_normalized",
    "mallows_dpo",
    "mappo",
    "margin",
    "minor_dpo",
    "nca",
    "nca_pair",
    "odpo",
    "orpo",
    "pl",
    "pl_reference_free",
    "qrpo",
    "qrpo_list",
    "rainbowpo",
    "rdpo",
    "repo",
    "robust",
    "ropo",
    "rpo_bwd",
    "rpo_fwd",
    "rpo_sq",
    "rrhf",
    "sampo",
    "sft",
    "sigmoid",
    "sigmoid_norm",
    "simper",
    "simpo",
    "slic_hf",
    "soft_dpo",
    "soft_dpo_p",
    "sppo",
    "sppo_hard",
    "sppo_list",
    "sympo",
    "tdpo1",
    "tdpo2",
    "tis_dpo",
    "top1",
    "uni_dpo",
    "unlikelihood",
]
