"""A camera head that turns towards a target: it follows the planner's goal, and holds still when the goal is old."""

from libc.stdint cimport int64_t

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import numpy as np


cdef struct Goal:
    double angle  # rad
    int64_t seen  # ns on the monotonic clock: when the camera took the image that the goal is from

cdef struct Record:
    int64_t release      # ns
    double angle, goal   # rad
    int64_t goal_age     # ns since the planner wrote the goal
    int64_t image_age    # ns since the image was taken
    int64_t is_followed

GOAL = np.dtype([("angle", "f8"), ("seen", "i8")], align=True)
RECORD = np.dtype(
    [
        ("release", "i8"), ("angle", "f8"), ("goal", "f8"),
        ("goal_age", "i8"), ("image_age", "i8"), ("is_followed", "i8"),
    ],
    align=True,
)
assert (GOAL.itemsize, RECORD.itemsize) == (sizeof(Goal), sizeof(Record))


cdef class Servo(RTLoop):
    """Turn to the goal while it is younger than `oldest_goal` and from an image younger than `oldest_image`, in ns."""

    cdef readonly Latest goal, angle
    cdef readonly Ring log
    cdef int64_t oldest_goal, oldest_image
    cdef double position, speed

    def __init__(self, *args, share, oldest_goal, oldest_image, **settings):
        super().__init__(*args, **settings)
        self.goal = Latest(GOAL, share=f"{share}/goal", role="reader")
        self.angle = Latest("f8", share=f"{share}/angle")  # for the camera, which is mounted on the head
        self.log = Ring(RECORD, 20000, share=f"{share}/log")
        self.oldest_goal, self.oldest_image = oldest_goal, oldest_image

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Goal goal
        cdef Record record
        cdef double pull = 0
        self.goal.read(&goal)
        record.goal_age = self.goal.age(cycle.start)  # above any limit before the first goal
        record.image_age = cycle.start - goal.seen
        record.is_followed = record.goal_age < self.oldest_goal and record.image_age < self.oldest_image
        if record.is_followed:
            pull = 900.0 * (goal.angle - self.position)
        self.speed += cycle.dt * (pull - 60.0 * self.speed)
        self.position += cycle.dt * self.speed
        self.angle.write_at(&self.position, cycle.start)
        record.release, record.angle, record.goal = cycle.release, self.position, goal.angle
        self.log.push(&record)
        return RT_CONTINUE
