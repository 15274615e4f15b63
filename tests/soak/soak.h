/*
 * soak.h - the soak's workers: what they share
 *
 * Each worker does one round of work with the round's number as its seed, checks every result
 * against the known-right answer, and returns; a wrong result ends its process with a message.
 */
#ifndef TESTS_SOAK_H
#define TESTS_SOAK_H

#include <stddef.h>
#include <stdint.h>

/* Prints "soak: WRONG ..." and ends the process with status 1. */
__attribute__((format(printf, 1, 2))) _Noreturn void wrong(const char *format, ...);
/* Prints "soak: FAILED ...", for what is not a wrong result but keeps the work from being done. */
__attribute__((format(printf, 1, 2))) _Noreturn void failed(const char *format, ...);

/* A sequence of numbers; every seed gives another. */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* FNV-1a. */
static inline uint64_t sum_bytes(uint64_t sum, const void *bytes, size_t size)
{
    const uint8_t *p = bytes;
    for (size_t i = 0; i < size; i++)
        sum = (sum ^ p[i]) * UINT64_C(1099511628211);
    return sum;
}
#define SUM_START UINT64_C(14695981039346656037)

void round_programs(uint64_t seed); /* compiler, compressors, sqlite, perl, shell */
void round_forks(uint64_t seed);    /* processes that share and change memory */
void round_pages(uint64_t seed);    /* more memory than there is */
void round_files(uint64_t seed);    /* files on a tmpfs, mapped and written */
void round_code(uint64_t seed);     /* code made, changed and run, by two threads */

/* The sums of the programs' outputs: measured on the host, read in the guest. */
void programs_measure(const char *folder);
void programs_expect(const char *path);

#endif
