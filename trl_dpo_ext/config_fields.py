"""Hyperparameters of the built-in loss variants as fields. Written by `make docs`; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

from .option_docs import document_options


@document_options
@dataclass(kw_only=True)
class LossHyperparameters:
    """Options of `DPOExtConfig`: the hyperparameters of the built-in loss variants.

    The default None means "not set": the variant uses its published default. Setting a hyperparameter that none of the
    chosen losses takes is an error.

    Args:
        > Hyperparameters of `alpha_dpo`

        alpha_dpo_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 2.5; > 0)
        alpha_dpo_gamma_ratio: Mean target margin as a share of alpha_dpo_beta. (default: 0.6)
        alpha_dpo_alpha: How far a pair's target margin follows its gap to the reference; 0 is SimPO. (default: 0.2; >=
            0)

        > Hyperparameters of `alphapo`

        alphapo_beta: Scale of the reward; far larger than DPO's beta. (default: 2.5; > 0)
        alphapo_alpha: Shape of the reward: 0 is SimPO's logarithm, -1 the probability itself. (default: 0.25)
        alphapo_gamma: Reward by which the chosen side has to win. (default: 0.1)

        > Hyperparameters of `anc_dpo`

        anc_dpo_delta: Reward above which the chosen side is anchored. (default: 0.0)

        > Hyperparameters of `aot`, `aot_unpaired`

        aot_global: Whether to sort the pairs of all processes together. (default: False)

        > Hyperparameters of `arpo`

        arpo_alpha: Weight of the likelihood term. (default: 1.0; >= 0)
        arpo_detach: Whether the weight of the rejected side carries no gradient. (default: False)
        arpo_eta1: 1 more than the rejected side's weight where both sides are as likely per token. (default: 0.9; >= 0)
        arpo_eta2: How fast the rejected side's weight grows with the distance of the two sides. (default: 0.4; >= 0)

        > Hyperparameters of `bdpo`

        bdpo_lambda: Share of the policy in the mixture the rejected side is measured with; 1 is DPO. (default: 0.5; >
            0; <= 1)

        > Hyperparameters of `beta_dpo`

        beta_dpo_alpha: How far beta follows the batch's mean gap; 0 keeps it fixed. (default: 0.6; >= 0)
        beta_dpo_rho: Share of the batch that is left out as outliers. (default: 0.2; >= 0; < 1)

        > Hyperparameters of `bpo`

        bpo_alpha: Weight of the rejected side: how far it should fall for each step the chosen one rises. (default:
            0.3; > 0)
        bpo_link: The curve that the margin goes through. (default: hinge; one of hinge, logistic)

        > Hyperparameters of `cal_dpo`

        cal_dpo_beta: Cal-DPO's strength: each side is calibrated to the log-ratio 1 / (2 beta). (default: 0.002; > 0)

        > Hyperparameters of `chipo`

        chipo_clip: Largest reward R: the scaled margin is clipped to +-2 R; off by default. (default: None; > 0)

        > Hyperparameters of `cpo`

        cpo_alpha: Weight of the likelihood term. (default: 1.0; >= 0)

        > Hyperparameters of `d2po`

        d2po_gamma: What each token weighs as a share of the one before it; 1 is DPO. (default: 0.98; > 0; <= 1)

        > Hyperparameters of `dpo_nll`

        dpo_nll_weight: Weight of the likelihood term. (default: 1.0; >= 0)
        dpo_nll_norm: Likelihood per token of each answer, of the whole answer, or per token of the batch. (default:
            seq_mean; one of seq_mean, seq_sum, token_mean)

        > Hyperparameters of `dpo_shift`

        dpo_shift_lambda: Weight of the rejected side; 1 is DPO. (default: 0.75; > 0; <= 1)
        dpo_shift_schedule: Course of the weight over training: fixed at lambda, or between min and max. (default:
            fixed; one of fixed, increase_linear, decrease_linear)
        dpo_shift_min: Lowest weight of the rejected side in a schedule. (default: 0.75; > 0; <= 1)
        dpo_shift_max: Highest weight of the rejected side in a schedule. (default: 0.95; > 0; <= 1)

        > Hyperparameters of `dpop`

        dpop_lambda: Weight of the penalty on a chosen side less likely than under the reference. (default: 50.0; >= 0)

        > Hyperparameters of `dr_dpo`

        dr_dpo_beta: Temperature of the weights; low trusts the easy pairs, high weighs all alike. (default: 1.0; > 0)

        > Hyperparameters of `focalpo`

        focalpo_gamma: How fast the weight falls with the probability; 0 is DPO. (default: 0.05; >= 0)

        > Hyperparameters of `gamma_po`

        gamma_po_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 10.0; > 0)
        gamma_po_ratio: Mean target margin as a share of gamma_po_beta. (default: 0.4; >= 0)
        gamma_po_tau: How alike the pairs' target margins are kept; high is SimPO. (default: 10.0; > 0)

        > Hyperparameters of `hdpo`

        hdpo_alpha: Weight of the policy's own log-probs; below 1 sharpens it, 1 is DPO. (default: 0.95; > 0)

        > Hyperparameters of `kldpo`

        kldpo_tau: Temperature of the weights; low looks at the hardest pairs only. (default: 0.05; > 0)

        > Hyperparameters of `mallows_dpo`

        mallows_dpo_mean: Scale of the dispersion -log(entropy); 1 over its mean on your data keeps DPO's beta.
            (default: 0.29; > 0)

        > Hyperparameters of `margin`

        margin_scale: What one unit of the margin column is worth in nats. (default: 1.0)

        > Hyperparameters of `odpo`

        odpo_alpha: Weight of the offset. (default: 1.0; >= 0)
        odpo_transform: What is done to the score gap to make it an offset. (default: log; one of log, identity)

        > Hyperparameters of `orpo`

        orpo_lambda: Weight of the odds ratio against the likelihood. (default: 0.1; > 0)

        > Hyperparameters of `rainbowpo`

        rainbowpo_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 10.0; > 0)
        rainbowpo_alpha: Share of the reference in the margin, 0 being SimPO. (default: 0.25; >= 0; <= 1)
        rainbowpo_home: Target margin per token, where the reference is left out. (default: 0.1; >= 0)
        rainbowpo_mean: Scale of the dispersion -log(entropy) of the reference. (default: 0.29; > 0)

        > Hyperparameters of `rdpo`

        rdpo_alpha: Nats of reward that one extra token costs. (default: 0.01; >= 0)

        > Hyperparameters of `repo`

        repo_gamma: Nats per token by which the chosen side has to be the likelier one. (default: 0.6)

        > Hyperparameters of `ropo`

        ropo_alpha: Weight of the bounded, noise-tolerant term against DPO's. (default: 14.0; > 0)

        > Hyperparameters of `rpo_bwd`, `rpo_fwd`, `rpo_sq`

        rpo_eta: Scale of the score gap: what one point of score is worth in nats. (default: 1.0; > 0)

        > Hyperparameters of `simpo`

        simpo_beta: Scale of the mean log-prob per token; far larger than DPO's beta. (default: 2.0; > 0)
        simpo_gamma: Reward by which the chosen side has to win; 0.5 when not given. (default: None)
        simpo_gamma_beta_ratio: The same as a share of simpo_beta. (default: None)
        simpo_label_smoothing: The probability that a preference label is flipped. (default: 0.0; >= 0; < 0.5)
        simpo_link: The curve that the margin goes through. (default: sigmoid; one of sigmoid, hinge)

        > Hyperparameters of `slic_hf`

        slic_hf_delta: Nats by which the chosen side has to be the likelier one. (default: 1.0; > 0)
        slic_hf_lambda: Weight of the likelihood term. (default: 0.1; >= 0)

        > Hyperparameters of `soft_dpo`

        soft_dpo_eta: Turns the score gap into the log-odds that the label is right. (default: 1.0; > 0)

        > Hyperparameters of `sppo`

        sppo_beta: SPPO's strength: a sure pair is regressed to the log-ratio 1 / (2 beta). (default: 0.001; > 0)

        > Hyperparameters of `tdpo2`

        tdpo2_alpha: Weight of the drift from the reference; 0 is DPO. (default: 0.5; >= 0)

        > Hyperparameters of `unlikelihood`

        unlikelihood_alpha: Weight of the rejected side. (default: 1.0; >= 0; <= 1)
    """

    alpha_dpo_beta: float | None = None
    alpha_dpo_gamma_ratio: float | None = None
    alpha_dpo_alpha: float | None = None
    alphapo_beta: float | None = None
    alphapo_alpha: float | None = None
    alphapo_gamma: float | None = None
    anc_dpo_delta: float | None = None
    aot_global: bool | None = None
    arpo_alpha: float | None = None
    arpo_detach: bool | None = None
    arpo_eta1: float | None = None
    arpo_eta2: float | None = None
    bdpo_lambda: float | None = None
    beta_dpo_alpha: float | None = None
    beta_dpo_rho: float | None = None
    bpo_alpha: float | None = None
    bpo_link: str | None = None
    cal_dpo_beta: float | None = None
    chipo_clip: float | None = None
    cpo_alpha: float | None = None
    d2po_gamma: float | None = None
    dpo_nll_weight: float | None = None
    dpo_nll_norm: str | None = None
    dpo_shift_lambda: float | None = None
    dpo_shift_schedule: str | None = None
    dpo_shift_min: float | None = None
    dpo_shift_max: float | None = None
    dpop_lambda: float | None = None
    dr_dpo_beta: float | None = None
    focalpo_gamma: float | None = None
    gamma_po_beta: float | None = None
    gamma_po_ratio: float | None = None
    gamma_po_tau: float | None = None
    hdpo_alpha: float | None = None
    kldpo_tau: float | None = None
    mallows_dpo_mean: float | None = None
    margin_scale: float | None = None
    odpo_alpha: float | None = None
    odpo_transform: str | None = None
    orpo_lambda: float | None = None
    rainbowpo_beta: float | None = None
    rainbowpo_alpha: float | None = None
    rainbowpo_home: float | None = None
    rainbowpo_mean: float | None = None
    rdpo_alpha: float | None = None
    repo_gamma: float | None = None
    ropo_alpha: float | None = None
    rpo_eta: float | None = None
    simpo_beta: float | None = None
    simpo_gamma: float | None = None
    simpo_gamma_beta_ratio: float | None = None
    simpo_label_smoothing: float | None = None
    simpo_link: str | None = None
    slic_hf_delta: float | None = None
    slic_hf_lambda: float | None = None
    soft_dpo_eta: float | None = None
    sppo_beta: float | None = None
    tdpo2_alpha: float | None = None
    unlikelihood_alpha: float | None = None
