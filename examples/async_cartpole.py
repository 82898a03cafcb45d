"""Asynchronous PPO on CartPole: actors, a queue and a learner on one asyncio loop, killable at any moment.

    python examples/async_cartpole.py          # trains; run again, it resumes where the last run ended
    python examples/async_cartpole.py --demo   # kills a run in the middle of a save, resumes it, compares bit for bit

The demo can require bitwise equality because nothing here depends on how tasks are scheduled or where a run was killed:

1. Every random number comes from a Generator that is in the checkpoint.
2. Rollout k is played with the parameters after update k - 2. The actors are always exactly one update behind, so they
   keep playing while the learner learns.
3. The learner uses the rollouts of an iteration in the order of the actors, not in the order of arrival.
4. There is no `await` between an update and its save: the state of the actors is copied there, in the middle of their
   rollouts. The learner's state needs no copy, because the learner waits until `save` has captured it.
"""

from __future__ import annotations

import os

# Several BLAS threads would split the sums of a matrix product differently from run to run, and the matrices here are
# too small to benefit from them. BLAS reads this once, when numpy is imported.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import asyncio
import copy
import statistics
import sys
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from harness import SaveMeter, kill_and_resume, new_parser, run
from network import Network, backward, descend, forward, new_adam, new_network

import asyncckpt

if TYPE_CHECKING:
    import argparse

HORIZON = 128  # environment steps in a rollout
BREATH = 2  # environment steps between two yields to the loop
EPOCHS, MINIBATCH = 4, 128
GAMMA, LAMBDA, CLIP, ENTROPY_BONUS, LEARNING_RATE = 0.99, 0.95, 0.2, 0.005, 2e-3
GOAL = 150.0  # the mean return that counts as learned; a random policy gets about 22
TRANSITION = np.dtype("4f4, 4f4, f8, f4, i1, ?, ?")  # 47 bytes
TRANSITION.names = ("observation", "next_observation", "log_probability", "reward", "action", "terminated", "truncated")
OWN = ("observation", "rng", "iteration", "filled", "rollout")  # what an actor's future depends on,
GAME = ("state", "steps_beyond_terminated", "np_random")  # and of its environment (the time limit is a wrapper's)
Policies = defaultdict[int, asyncio.Future[Network]]  # version -> the policy after that many updates


def probability_right(logit: np.ndarray) -> np.ndarray:
    """The probability of pushing the cart to the right."""
    return 1 / (1 + np.exp(-logit))


def log_probability(logit: np.ndarray, action: np.ndarray | int) -> np.ndarray:
    """The logarithm of the probability of each action (1 is to the right), stable even if the policy is certain."""
    return -np.logaddexp(0, np.where(action, -logit, logit))


class Actor:
    """Plays CartPole, with its own environment, random numbers and current rollout."""

    def __init__(self, index: int, seed: int) -> None:
        self.index = index
        self.env = gym.make("CartPole-v1")
        self.observation, _ = self.env.reset(seed=seed * 1000 + index)
        self.rng = np.random.default_rng([seed, index])
        self.iteration, self.filled, self.rollout = 1, 0, np.zeros(HORIZON, TRANSITION)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that determines this actor's future."""
        own = {name: getattr(self, name) for name in OWN}
        game = {name: getattr(self.env.unwrapped, name) for name in GAME}
        return copy.deepcopy({"own": own, "game": game, "elapsed_steps": self.env.get_wrapper_attr("_elapsed_steps")})

    def restore(self, state: dict[str, Any]) -> None:
        """Continue as the actor that had this state."""
        for name in OWN:
            setattr(self, name, state["own"][name])
        for name in GAME:
            setattr(self.env.unwrapped, name, state["game"][name])
        self.env.set_wrapper_attr("_elapsed_steps", state["elapsed_steps"])

    def step(self, policy: Network) -> None:
        """Play one step and record it."""
        logit, _ = forward(policy, self.observation)
        action = int(self.rng.random() < probability_right(logit))
        log_p = log_probability(logit, action)
        after, reward, terminated, truncated, _ = self.env.step(action)
        self.rollout[self.filled] = (self.observation, after, log_p, reward, action, terminated, truncated)
        self.filled += 1
        self.observation = self.env.reset()[0] if terminated or truncated else after

    async def play(self, policies: Policies, queue: asyncio.Queue[tuple[int, int, np.ndarray]]) -> None:
        """Fill one rollout after another, forever."""
        policy = await policies[max(0, self.iteration - 2)]
        while True:
            while self.filled < HORIZON:
                self.step(policy)
                if self.filled % BREATH == 0:
                    await asyncio.sleep(0)
            queue.put_nowait((self.iteration, self.index, self.rollout))
            # Until the next rollout begins, this one stays part of the actor's state: so a checkpoint holds the queue's
            # content without looking into the queue, and a resumed actor puts it there again.
            policy = await policies[self.iteration - 1]
            self.iteration, self.filled, self.rollout = self.iteration + 1, 0, np.zeros(HORIZON, TRANSITION)


class Learner:
    """PPO in numpy. `vars(learner)` is its whole state: parameters, optimizer, random numbers, statistics, replay."""

    def __init__(self, seed: int, n_actors: int, n_replay: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.params = {"policy": new_network(self.rng, 4, 64, 64, 1), "value": new_network(self.rng, 4, 64, 64, 1)}
        self.adam = {name: new_adam(net) for name, net in self.params.items()}
        self.episode_returns = np.zeros(n_actors)  # of the episodes not yet ended
        self.returns: deque[float] = deque(maxlen=100)
        self.n_steps = 0
        self.replay = np.zeros(n_replay, TRANSITION)  # a ring buffer of observations, for later studies

    def remember(self, batch: np.ndarray) -> None:
        """Add the rollouts, (actors, HORIZON), to the replay and the statistics."""
        self.replay[(self.n_steps + np.arange(batch.size)) % len(self.replay)] = batch.reshape(-1)
        self.n_steps += batch.size
        for moment in batch.T:
            self.episode_returns += moment["reward"]
            over = moment["terminated"] | moment["truncated"]
            self.returns.extend(self.episode_returns[over].tolist())
            self.episode_returns[over] = 0

    async def learn(self, batch: np.ndarray) -> None:
        """Improve policy and value from the rollouts, (actors, HORIZON). Yields to the loop between minibatches."""
        await asyncio.sleep(0)
        advantage, target = self.estimate(batch)
        transitions = batch.reshape(-1)
        for _ in range(EPOCHS):
            for rows in np.split(self.rng.permutation(batch.size), range(MINIBATCH, batch.size, MINIBATCH)):
                await asyncio.sleep(0)
                self.improve_policy(transitions[rows], advantage[rows])
                await asyncio.sleep(0)
                self.improve_value(transitions[rows], target[rows])

    def estimate(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The advantage of each action taken and the value of each observation, both (actors * HORIZON,)."""
        value = forward(self.params["value"], batch["observation"])[0]
        value_after = forward(self.params["value"], batch["next_observation"])[0] * ~batch["terminated"]
        error = batch["reward"] + GAMMA * value_after - value
        decay = GAMMA * LAMBDA * ~(batch["terminated"] | batch["truncated"])
        advantage = np.zeros_like(error)
        later = np.zeros(len(batch))
        for t in reversed(range(HORIZON)):
            advantage[:, t] = later = error[:, t] + decay[:, t] * later
        target = advantage + value
        return ((advantage - advantage.mean()) / (advantage.std() + 1e-8)).reshape(-1), target.reshape(-1)

    def improve_policy(self, seen: np.ndarray, advantage: np.ndarray) -> None:
        """Take one step up PPO's clipped objective and the policy's entropy."""
        logit, activations = forward(self.params["policy"], seen["observation"])
        p = probability_right(logit)
        ratio = np.exp(log_probability(logit, seen["action"]) - seen["log_probability"])
        is_clipped = np.where(advantage > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
        gain = np.where(is_clipped, 0.0, advantage * ratio * (seen["action"] - p)) - ENTROPY_BONUS * logit * p * (1 - p)
        self.descend("policy", activations, -gain / len(seen))

    def improve_value(self, seen: np.ndarray, target: np.ndarray) -> None:
        """Take one step down the squared error of the value."""
        value, activations = forward(self.params["value"], seen["observation"])
        self.descend("value", activations, (value - target) / len(seen))

    def descend(self, name: str, activations: tuple[np.ndarray, ...], dy: np.ndarray) -> None:
        """Take one step of the optimizer, given the loss's gradient with respect to a network's output."""
        net = self.params[name]
        descend(net, self.adam[name], backward(net, activations, dy), LEARNING_RATE)


async def train(args: argparse.Namespace) -> None:
    """Learn until `args.iterations` updates are done, starting from the newest checkpoint if there is one."""
    learner = Learner(args.seed, args.actors, args.replay)
    actors = [Actor(index, args.seed) for index in range(args.actors)]
    policies: Policies = defaultdict(asyncio.get_running_loop().create_future)
    queue: asyncio.Queue[tuple[int, int, np.ndarray]] = asyncio.Queue()
    inbox: defaultdict[int, dict[int, np.ndarray]] = defaultdict(dict)  # iteration -> actor -> rollout
    meter = SaveMeter()
    async with (
        asyncckpt.CheckpointManager(
            args.dir, metric_name="mean_return", save_period=args.save_period, keep_top_k=3, format=args.format
        ) as manager,
        asyncio.TaskGroup() as group,
    ):
        done = 0
        if last := await manager.load("latest", missing_ok=True):
            print(f"resuming from {last.path}")
            done = last.step
            policies[done - 1].set_result(last.state["played_policy"])
            vars(learner).update(last.state["learner"])
            for actor, state in zip(actors, last.state["actors"], strict=True):
                actor.restore(state)
        policies[done].set_result(copy.deepcopy(learner.params["policy"]))
        background = [group.create_task(actor.play(policies, queue)) for actor in actors]
        background.append(group.create_task(meter.tick()))
        for k in range(done + 1, args.iterations + 1):
            while len(inbox[k]) < args.actors:
                iteration, index, rollout = await queue.get()
                inbox[iteration][index] = rollout
            batch = np.stack([rollout for _, rollout in sorted(inbox.pop(k).items())])
            learner.remember(batch)
            await learner.learn(batch)
            policies[k].set_result(copy.deepcopy(learner.params["policy"]))
            policies.pop(k - 2, None)
            if manager.should_save(k) or k == args.iterations:
                mean_return = statistics.fmean(learner.returns) if learner.returns else 0.0
                info = {"mean_return": mean_return, "environment_steps": learner.n_steps}
                state = {
                    "learner": vars(learner),
                    "actors": [actor.state() for actor in actors],
                    "played_policy": policies[k - 1].result(),
                }
                meter.begin()
                handle = await manager.save(k, state, training_info=info, run_config={"seed": args.seed})
                group.create_task(meter.report(handle, f"mean return {mean_return:.1f}"))
        await manager.flush()  # the meter measures the last save, too
        for task in background:
            task.cancel()
    print(meter.summary(), flush=True)


def main() -> None:
    """Train, or demonstrate."""
    parser = new_parser(__doc__, directory="runs/cartpole", save_period=10, format="msgpack")
    parser.add_argument("--iterations", type=int, default=200, help="updates, each from one rollout of each actor")
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--replay", type=int, default=2**20, help="transitions kept, of 47 bytes each")
    if (args := parser.parse_args()).short:
        parser.set_defaults(iterations=12, replay=2**18, save_period=2)
        args = parser.parse_args()
    if not args.demo:
        run(train(args), args.loop)
        return
    final = kill_and_resume(args, kill_from=args.iterations // 2, important=lambda state: state["learner"])
    if final and not args.short:
        print(f"mean return {final.training_info['mean_return']:.1f}, to be over {GOAL:.0f}")
    has_learned = final and (args.short or final.training_info["mean_return"] > GOAL)
    sys.exit(0 if has_learned else 1)


if __name__ == "__main__":
    main()
