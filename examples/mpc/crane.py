"""A crane as an optimisation problem, and the C code that OSQP and CasADi generate for it.

`python crane.py` writes it into the folder `generated`. The trolley's position x and the rope's length l are
accelerated by u = (a, b); the load swings by the angle q.
"""

from pathlib import Path

import casadi
import numpy as np
import osqp
import scipy.linalg
import scipy.sparse

GRAVITY = 9.81
ROPE = 1.0  # m, of the linear model
SWAY = 0.12  # rad, at most
SPEED = 1.0  # m/s
ACCELERATION = (1.5, 1.0)  # m/s^2, of trolley and hoist
WEIGHTS = np.array([5.0, 1, 10, 1, 5, 1])  # of x, v, q, q', l, l'
EFFORT = np.array([0.1, 0.1])
SOFT, PRICE = 100.0, 1000.0  # quadratic and linear cost of a sway beyond its limit
LINEAR, LINEAR_STEP = 20, 0.05  # steps of the horizon, s
NONLINEAR, NONLINEAR_STEP = 7, 0.14


def generate_linear(folder: Path) -> osqp.OSQP:
    """Write OSQP's code for a rope of constant length, and return the solver in Python.

    The variables are the states at 0...steps, the inputs, and the sway beyond its limit. The first four constraints are
    the present state: the step changes their bounds, and the linear cost if the goal changes.
    """
    n, steps = 4, LINEAR
    a = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, -GRAVITY / ROPE, 0]])
    b = np.array([[0.0], [1], [0], [-1 / ROPE]])
    exact = scipy.linalg.expm(LINEAR_STEP * np.block([[a, b], [np.zeros((1, 5))]]))
    a, b = exact[:n, :n], exact[:n, n:]
    q, r = np.diag(WEIGHTS[:n]), EFFORT[:1, None]
    last = scipy.linalg.solve_discrete_are(a, b, q, r)
    cost = scipy.sparse.block_diag([*[q] * steps, last, *[r] * steps, [[SOFT]]], format="csc")
    states, inputs = scipy.sparse.eye(n * (steps + 1)), scipy.sparse.eye(steps)
    shift = scipy.sparse.kron(scipy.sparse.eye(steps + 1, k=-1), a)
    effect = scipy.sparse.vstack([scipy.sparse.csc_matrix((n, steps)), scipy.sparse.kron(inputs, b)])
    later = scipy.sparse.eye(steps, steps + 1, k=1)  # without the present state, which cannot be changed
    speeds, angles = scipy.sparse.kron(later, [[0, 1, 0, 0]]), scipy.sparse.kron(later, [[0, 0, 1, 0]])
    soft = np.ones((steps, 1))
    rows = [
        [states - shift, -effect, None],  # x0 is the present state, and each state follows from the one before
        [speeds, None, None],
        [angles, None, -soft],
        [angles, None, soft],
        [None, inputs, None],
        [None, None, scipy.sparse.eye(1)],
    ]
    present, one, infinite = np.zeros(n * (steps + 1)), np.ones(steps), np.full(steps, np.inf)
    lower = [present, -SPEED * one, -infinite, -SWAY * one, -ACCELERATION[0] * one, [0]]
    upper = [present, SPEED * one, SWAY * one, infinite, ACCELERATION[0] * one, [np.inf]]
    solver = osqp.OSQP()
    solver.setup(
        scipy.sparse.triu(cost, format="csc"), np.zeros(cost.shape[0]), scipy.sparse.bmat(rows, format="csc"),
        np.concatenate(lower), np.concatenate(upper), verbose=False, polishing=False, adaptive_rho=False, rho=10.0,
        eps_abs=1e-3, eps_rel=1e-3, max_iter=200, check_termination=10, warm_starting=True,
    )  # fmt: skip
    solver.codegen(str(folder), parameters="vectors", prefix="crane_", force_rewrite=True, compile=False)
    pull = np.zeros(cost.shape[0])  # the linear cost for a goal of 1 m
    pull[: n * steps : n], pull[n * steps : n * (steps + 1)] = -q[0, 0], -last[:, 0]
    (folder / "crane_problem.h").write_text(
        f"enum {{ CRANE_VARIABLES = {len(pull)}, CRANE_ROWS = {len(np.concatenate(lower))}, "
        f"CRANE_INPUT = {n * (steps + 1)}, CRANE_PRICE = {PRICE:.0f} }};\n"
        + "".join(
            f"static const double crane_{name}[] = {{{', '.join(map(repr, np.clip(values, -1e30, 1e30).tolist()))}}};\n"
            for name, values in (("pull", pull), ("lower", np.concatenate(lower)), ("upper", np.concatenate(upper)))
        )
    )
    return solver


def motion(z: casadi.SX, u: casadi.SX) -> casadi.SX:
    """Return the derivative of the state (x, v, q, q', l, l')."""
    _, v, q, w, rope, reeling = casadi.vertsplit(z)
    swing = -(u[0] * casadi.cos(q) + GRAVITY * casadi.sin(q) + 2 * reeling * w) / rope
    return casadi.vertcat(v, u[0], w, swing, reeling, u[1])


def nonlinear_step() -> casadi.Function:
    """Return one iteration of sequential quadratic programming, as a function that CasADi can write in C.

    It takes the state, the goal, and the solution of the previous cycle, which is the start for this one.
    """
    n, m, steps, h = 6, 2, NONLINEAR, NONLINEAR_STEP
    z, u = casadi.SX.sym("z", n), casadi.SX.sym("u", m)
    k1 = motion(z, u)
    k2 = motion(z + h / 2 * k1, u)
    k3 = motion(z + h / 2 * k2, u)
    follow = casadi.Function("follow", [z, u], [z + h / 6 * (k1 + 2 * k2 + 2 * k3 + motion(z + h * k3, u))])
    inputs, soft = casadi.SX.sym("inputs", m, steps), casadi.SX.sym("soft")
    p = casadi.SX.sym("p", n + 2)  # the present state, the goal of x and l
    goal = casadi.vertcat(p[n], 0, 0, 0, p[n + 1], 0)
    now, parts, rows = p[:n], [], []
    for k in range(steps):
        now = follow(now, inputs[:, k])
        weights = WEIGHTS * (5 if k == steps - 1 else 1)
        parts += [np.sqrt(weights) * (now - goal), np.sqrt(EFFORT) * inputs[:, k]]
        rows += [now[1], now[5], now[2] - soft, now[2] + soft]
    w, residual, g = casadi.vertcat(casadi.vec(inputs), soft), casadi.vertcat(*parts), casadi.vertcat(*rows)
    low = np.array([*np.tile(-np.array(ACCELERATION), steps), 0])
    high = np.array([*np.tile(ACCELERATION, steps), np.inf])
    problem = {"x": w, "p": p, "f": casadi.sumsqr(residual) + SOFT * soft**2 + PRICE * soft, "g": g}
    of_f, of_g = casadi.SX.sym("of_f"), casadi.SX.sym("of_g", g.numel())
    slope = casadi.jacobian(residual, w)
    curvature = 2 * (slope.T @ slope)  # Gauss-Newton: positive
    curvature[2 * steps, 2 * steps] += 2 * SOFT
    options = {"qpsol": "qrqp", "max_iter": 1,
               "hess_lag": casadi.Function("curvature", [w, p, of_f, of_g], [of_f * curvature],
                                           ["x", "p", "lam_f", "lam_g"], ["hess_gamma_x_x"]),
               "print_header": False, "print_iteration": False, "print_status": False, "print_time": False,
               "error_on_fail": False, "qpsol_options": {"print_iter": False, "print_header": False,
               "print_info": False, "error_on_fail": False, "max_iter": 12}}  # fmt: skip
    solver = casadi.nlpsol("solver", "sqpmethod", problem, options)
    start, at = casadi.MX.sym("start", w.numel()), casadi.MX.sym("at", n + 2)
    of_x, of_g = casadi.MX.sym("of_x", w.numel()), casadi.MX.sym("of_g", g.numel())
    least, most = np.tile([-SPEED, -SPEED, -np.inf, -SWAY], steps), np.tile([SPEED, SPEED, SWAY, np.inf], steps)
    found = solver(x0=start, p=at, lam_x0=of_x, lam_g0=of_g, lbx=low, ubx=high, lbg=least, ubg=most)
    return casadi.Function("nmpc", [at, start, of_x, of_g], [found["x"], found["lam_x"], found["lam_g"]])


def generate_nonlinear(folder: Path) -> casadi.Function:
    """Write CasADi's code, and return the function in Python."""
    function = nonlinear_step()
    code = casadi.CodeGenerator("nmpc", {"with_header": True})
    code.add(function)
    code.generate(f"{folder}/")
    return function


def generate(folder: Path) -> None:
    """Write the C code of both solvers."""
    (folder / "linear").mkdir(parents=True, exist_ok=True)
    generate_linear(folder / "linear")
    generate_nonlinear(folder)


if __name__ == "__main__":
    generate(Path("generated"))
