"""A controller of somebody else's, built against rtloop."""

from servo.servo import Servo

__all__ = ["Servo"]
