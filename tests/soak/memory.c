/*
 * memory.c - rounds of memory: processes that share it, more of it than there is, files in it
 *
 * A page's contents follow from a key: 64 words that repeat through the page, so that the swap
 * compresses well while any page that is lost, old or in the wrong place is noticed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "soak.h"

enum { PAGE = 4096, WORDS = PAGE / 8, PERIOD = 64 };

static void fill_page(void *page, uint64_t key)
{
    uint64_t *p = page, state = key;
    for (int i = 0; i < PERIOD; i++)
        p[i] = next_random(&state);
    for (int i = PERIOD; i < WORDS; i++)
        p[i] = p[i - PERIOD];
}

static void check_page(const void *page, uint64_t key, const char *who)
{
    const uint64_t *p = page;
    uint64_t state = key, want[PERIOD];
    for (int i = 0; i < PERIOD; i++)
        want[i] = next_random(&state);
    for (int i = 0; i < WORDS; i++)
        if (p[i] != want[i % PERIOD])
            wrong("%s: word %d of the page with key %llx: %llx, expected %llx", who, i,
                  (unsigned long long)key, (unsigned long long)p[i],
                  (unsigned long long)want[i % PERIOD]);
}

static uint8_t *map_pages(size_t pages)
{
    void *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        failed("mmap of %zu pages: %s", pages, strerror(errno));
    return p;
}

static void wait_for(pid_t pid, const char *who)
{
    int status;
    if (pid < 0)
        failed("%s: fork: %s", who, strerror(errno));
    if (waitpid(pid, &status, 0) != pid || status != 0)
        wrong("%s: a child ended with status %#x", who, status);
}

/* ---- forks ---- */

enum { FORK_PAGES = 128, FORK_DEPTH = 3, FORK_WIDTH = 3 };

/* Each process sees its parent's pages, changes some, and has children see that. */
static void family(uint8_t *memory, uint64_t *keys, uint64_t seed, int depth)
{
    uint64_t state = seed;

    for (int child = 0; depth > 0 && child < FORK_WIDTH; child++) {
        uint64_t child_seed = next_random(&state);
        pid_t pid = fork();
        if (pid == 0) {
            for (int i = 0; i < FORK_PAGES; i++)
                check_page(memory + (size_t)i * PAGE, keys[i], "forks");
            for (int n = 0; n < FORK_PAGES / 4; n++) {
                int i = (int)(next_random(&child_seed) % FORK_PAGES);
                keys[i] = next_random(&child_seed);
                fill_page(memory + (size_t)i * PAGE, keys[i]);
            }
            family(memory, keys, child_seed, depth - 1);
            _exit(0);
        }
        /* what the child changes is its own */
        int i = (int)(next_random(&state) % FORK_PAGES);
        keys[i] = next_random(&state);
        fill_page(memory + (size_t)i * PAGE, keys[i]);
        wait_for(pid, "forks");
    }
    for (int i = 0; i < FORK_PAGES; i++)
        check_page(memory + (size_t)i * PAGE, keys[i], "forks");
}

void round_forks(uint64_t seed)
{
    uint8_t *memory = map_pages(FORK_PAGES);
    uint64_t keys[FORK_PAGES], state = seed;

    for (int i = 0; i < FORK_PAGES; i++) {
        keys[i] = next_random(&state);
        fill_page(memory + (size_t)i * PAGE, keys[i]);
    }
    family(memory, keys, seed, FORK_DEPTH);
    munmap(memory, (size_t)FORK_PAGES * PAGE);
}

/* ---- pages ---- */

enum { BIG_PAGES = 14336, BIG_STEPS = 6000 }; /* 56 MiB */

/*
 * Fills more memory than both of these workers can have at once, then looks at pages here and
 * there, changes, drops, moves and protects some, and looks at all of them at the end.
 */
void round_pages(uint64_t seed)
{
    uint8_t *memory = map_pages(BIG_PAGES);
    uint64_t *keys = calloc(BIG_PAGES, sizeof(*keys)), state = seed;

    if (!keys)
        failed("out of memory");
    for (size_t i = 0; i < BIG_PAGES; i++) {
        keys[i] = next_random(&state) | 1;
        fill_page(memory + i * PAGE, keys[i]);
    }
    for (int step = 0; step < BIG_STEPS; step++) {
        uint64_t r = next_random(&state);
        size_t i = (r >> 8) % BIG_PAGES;
        uint8_t *page = memory + i * PAGE;
        if (keys[i])
            check_page(page, keys[i], "pages");
        else if (page[r % PAGE] != 0)
            wrong("pages: a dropped page is not zero");
        switch (r % 8) {
        case 0:
            if (madvise(page, PAGE, MADV_DONTNEED) != 0)
                failed("madvise: %s", strerror(errno));
            keys[i] = 0;
            break;
        case 1:
        case 2:
            keys[i] = r | 1;
            fill_page(page, keys[i]);
            break;
        case 3:
            if (mprotect(page, PAGE, PROT_READ) != 0 ||
                mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0)
                failed("mprotect: %s", strerror(errno));
            break;
        default:
            break;
        }
    }
    /* as a whole to another place */
    void *there =
        mremap(memory, (size_t)BIG_PAGES * PAGE, (size_t)(BIG_PAGES + 1) * PAGE, MREMAP_MAYMOVE);
    if (there == MAP_FAILED)
        failed("mremap: %s", strerror(errno));
    memory = there;
    for (size_t i = 0; i < BIG_PAGES; i++)
        if (keys[i])
            check_page(memory + i * PAGE, keys[i], "pages");
        else
            for (int n = 0; n < PAGE; n += 512)
                if (memory[i * PAGE + (size_t)n] != 0)
                    wrong("pages: a dropped page is not zero");
    munmap(memory, (size_t)(BIG_PAGES + 1) * PAGE);
    free(keys);
}

/* ---- files ---- */

enum { FILE_PAGES = 1536 };

/* Written by write(), read through a mapping, and the other way round, with holes and renames. */
void round_files(uint64_t seed)
{
    char name[64], other[80];
    uint8_t page[PAGE];
    uint64_t state = seed;

    snprintf(name, sizeof(name), "/tmp/soak.%d.%llu", (int)getpid(), (unsigned long long)seed);
    snprintf(other, sizeof(other), "%s.renamed", name);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0)
        failed("open %s: %s", name, strerror(errno));
    for (uint64_t i = 0; i < FILE_PAGES; i++) {
        fill_page(page, seed ^ i << 32);
        if (write(fd, page, PAGE) != PAGE)
            failed("write to %s: %s", name, strerror(errno));
    }
    if (rename(name, other) != 0)
        failed("rename: %s", strerror(errno));
    uint8_t *map = mmap(NULL, (size_t)FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        failed("mmap: %s", strerror(errno));
    for (uint64_t i = 0; i < FILE_PAGES; i++)
        check_page(map + i * PAGE, seed ^ i << 32, "files, mapped");
    for (int n = 0; n < 200; n++) {
        uint64_t i = next_random(&state) % FILE_PAGES;
        fill_page(map + i * PAGE, seed ^ i << 32 ^ 1);
        if (pread(fd, page, PAGE, (off_t)(i * PAGE)) != PAGE)
            failed("read: %s", strerror(errno));
        check_page(page, seed ^ i << 32 ^ 1, "files, read");
        fill_page(page, seed ^ i << 32);
        if (pwrite(fd, page, PAGE, (off_t)(i * PAGE)) != PAGE)
            failed("write: %s", strerror(errno));
        check_page(map + i * PAGE, seed ^ i << 32, "files, written again");
    }
    uint64_t hole = next_random(&state) % FILE_PAGES;
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(hole * PAGE), PAGE) != 0)
        failed("fallocate: %s", strerror(errno));
    for (int n = 0; n < PAGE; n++)
        if (map[hole * PAGE + (uint64_t)n] != 0)
            wrong("files: a hole is not empty");
    munmap(map, (size_t)FILE_PAGES * PAGE);
    close(fd);
    if (unlink(other) != 0)
        failed("unlink: %s", strerror(errno));
}
