"""The front door for Cython: ``from rtloop cimport RTLoop, Cycle, RT_CONTINUE, RT_STOP, HugeBuffer, Pool``."""

from rtloop.data.buffer cimport _HugeBuffer_1 as HugeBuffer
from rtloop.data.pool cimport _Pool_1 as Pool
from rtloop.loop.loop cimport RT_CONTINUE, RT_STOP, Cycle
from rtloop.loop.loop cimport _RTLoop_1 as RTLoop
