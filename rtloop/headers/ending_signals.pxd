"""Declarations of ending_signals.h and crash.h."""

from libc.stdint cimport uint64_t


cdef extern from "../include/rtloop/crash.h":
    ctypedef struct rt_crash_t:
        uint64_t number
        uint64_t pc
        uint64_t address

    int rt_crash_report_to(int fd)


cdef extern from "../include/rtloop/ending_signals.h":
    ctypedef struct rt_ending_asker_t:
        uint64_t asked
        int takes_pythons

    int rt_ending_open()
    int rt_ending_wait(int fd) nogil
    void rt_ending_ask(rt_ending_asker_t *asker, int is_pythons)
    void rt_ending_ask_again(int number, int is_pythons)
    void rt_ending_withdraw(rt_ending_asker_t *asker)
    void rt_ending_pass_on(int number, unsigned long thread)
    unsigned int rt_ending_count(int number)
    void rt_ending_take_course(int number)
    void rt_ending_set_timer(int number, int seconds)
    void rt_ending_add_flag(size_t word, unsigned int bits)
    void rt_ending_remove_flag(size_t word)
    void rt_ending_clear()
    void rt_ending_take(int is_taken)
