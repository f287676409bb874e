"""The front door for Cython.

``from rtloop cimport RTLoop, Cycle, RT_CONTINUE, RT_STOP, HugeBuffer, Latest, Pool, Ring, SignalLog``.
"""

from rtloop.data.buffer cimport _HugeBuffer_1 as HugeBuffer
from rtloop.data.latest cimport _Latest_1 as Latest
from rtloop.data.pool cimport _Pool_1 as Pool
from rtloop.data.ring cimport _Ring_1 as Ring
from rtloop.data.signals cimport _SignalLog_1 as SignalLog
from rtloop.loop.loop cimport RT_CONTINUE, RT_STOP, Cycle
from rtloop.loop.loop cimport _RTLoop_2 as RTLoop
