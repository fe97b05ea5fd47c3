// The losses that depend only on a pair's two log-ratios, with the names and arguments of
// stages/train/losses; a test compares the two. c, r: log-ratios of chosen and rejected, in nats.
"use strict";

const logSigmoid = (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
const sigmoid = (x) => Math.exp(logSigmoid(x));

// beyond 30, continue along the tangent, which stays finite
const exp = (x) => Math.exp(Math.min(x, 30)) + Math.exp(30) * Math.max(0, x - 30);

const LOSSES = {
  dpo: (c, r, { beta }) => -logSigmoid(beta * (c - r)),
  cdpo: (c, r, { beta, label_smoothing: e }) =>
    -(1 - e) * logSigmoid(beta * (c - r)) - e * logSigmoid(-beta * (c - r)),
  robust: (c, r, { beta, label_smoothing: e }) =>
    (-(1 - e) * logSigmoid(beta * (c - r)) + e * logSigmoid(-beta * (c - r))) / (1 - 2 * e),
  ipo: (c, r, { beta }) => (c - r - 1 / (2 * beta)) ** 2,
  hinge: (c, r, { beta }) => Math.max(0, 1 - beta * (c - r)),
  exo: (c, r, { beta, label_smoothing: e }) => {
    const m = beta * (c - r);
    return (
      sigmoid(m) * (logSigmoid(m) - Math.log1p(-e)) + sigmoid(-m) * (logSigmoid(-m) - Math.log(e))
    );
  },
  discopop: (c, r, { beta, tau }) => {
    const m = beta * (c - r);
    return -logSigmoid(m) * sigmoid(-m / tau) + Math.exp(logSigmoid(m / tau) - m);
  },
  dpop: (c, r, { beta, dpop_lambda }) =>
    -logSigmoid(beta * (c - r - dpop_lambda * Math.max(0, -c))),
  apo_zero: (c, r, { beta }) => sigmoid(-beta * c) + sigmoid(beta * r),
  apo_down: (c, r, { beta }) => sigmoid(beta * c) + sigmoid(-beta * (c - r)),
  nca: (c, r, { beta }) =>
    -logSigmoid(beta * c) - 0.5 * (logSigmoid(-beta * c) + logSigmoid(-beta * r)),
  bco: (c, r, { beta }) => -logSigmoid(beta * c) - logSigmoid(-beta * r),
  sppo: (c, r, { beta }) => (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
  fdpo_forward_kl: (c, r, { beta }) => -logSigmoid(beta * (exp(-r) - exp(-c))),
  fdpo_js: (c, r, { beta }) => -logSigmoid(beta * (logSigmoid(c) - logSigmoid(r))),
  fdpo_alpha: (c, r, { beta, alpha }) =>
    -logSigmoid((beta * (exp(-alpha * r) - exp(-alpha * c))) / alpha),
};

// Minus the slopes of the loss in c and r: how strongly it pushes each response's log-prob up. Central
// differences, so a new loss takes one line; at a kink, they give the mean of both sides.
function pushes(loss, c, r, given) {
  const h = 1e-4;
  return [
    (loss(c - h, r, given) - loss(c + h, r, given)) / (2 * h),
    (loss(c, r - h, given) - loss(c, r + h, given)) / (2 * h),
  ];
}
