/*
 * writers.c - in the guest of crash.py: writers whose every step can be told from what is on the
 * disk
 *
 * usage: writers FOLDER PORT SEED DONE... (one number for each writer)
 *
 * A writer takes steps 1, 2, 3... What step N does follows from the seed, the writer and N, and it
 * is on the disk (fsync, fdatasync, O_DSYNC; of the folder too, where names change) before the step
 * is told to the host, "step WRITER N", and the next one begins. So whenever the machine ends, the
 * disk holds exactly what steps 1 to M have made, for some M that is not less than what the host
 * was told (DONE), and perhaps parts of step M + 1.
 *
 * First this is checked, every byte of it: "checked WRITER M", or "wrong ..." on the port. Then
 * "ready", and all writers go on at once from M + 1, until the host says "end".
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTOR 512u
#define BLOCK 4096u
#define SIZE_MAX_BYTES (128u << 10) /* of what a step writes */
#define BUF_BYTES (SIZE_MAX_BYTES + BLOCK)
/* More steps than a writer can take before the host is told of the first. */
#define AHEAD 20000u

struct writer {
    unsigned number;
    char folder[64]; /* of this writer alone */
    uint64_t seed;
    uint64_t done; /* the host knows of so many steps */
};

static int port;
static uint8_t *buf, *want; /* BUF_BYTES each, aligned for O_DIRECT */

/* One write, so that lines of several writers do not mix. */
__attribute__((format(printf, 1, 2))) static void tell(const char *format, ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof(line) - 1, format, args);
    va_end(args);
    if (n > (int)sizeof(line) - 2)
        n = sizeof(line) - 2;
    line[n] = '\n';
    if (write(port, line, (size_t)n + 1) != n + 1)
        exit(2);
}

#define FAIL(...) (tell("wrong " __VA_ARGS__), exit(1))

static void check_call(bool is_good, const char *what)
{
    if (!is_good)
        FAIL("%s: %s", what, strerror(errno));
}

/* ---- numbers and contents that follow from a step ---- */

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t draw(const struct writer *w, uint64_t step, unsigned which)
{
    return mix(mix(mix(w->seed + w->number) + step) + which);
}

/*
 * `size` bytes of a step's data, sectors `first` and on. Every sector begins with its writer, step
 * and place; the rest of it follows from these.
 */
static void fill(const struct writer *w, uint64_t step, uint64_t first, uint8_t *out, size_t size)
{
    for (size_t at = 0; at < size; at += SECTOR, first++) {
        uint64_t sector[SECTOR / 8] = {w->number, step, first};
        uint64_t x = mix(mix(w->number ^ step << 8) + first);
        for (size_t i = 3; i < SECTOR / 8; i++)
            sector[i] = x += UINT64_C(0xd1342543de82ef95) ^ x << 7;
        memcpy(out + at, sector, size - at < SECTOR ? size - at : SECTOR);
    }
}

static uint64_t step_of(const uint8_t *sector)
{
    uint64_t step;
    memcpy(&step, sector + 8, sizeof(step));
    return step;
}

/* ---- files ---- */

struct path {
    char text[200];
};

static struct path path_in(const char *folder, const char *name)
{
    struct path path;
    snprintf(path.text, sizeof(path.text), "%.100s/%.50s", folder, name);
    return path;
}

static int open_in(const char *folder, const char *name, int flags)
{
    return open(path_in(folder, name).text, flags, 0666);
}

static int must_open(const char *folder, const char *name, int flags)
{
    int fd = open_in(folder, name, flags);
    if (fd < 0)
        FAIL("open %s/%s: %s", folder, name, strerror(errno));
    return fd;
}

static void sync_folder(const char *folder)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY);
    check_call(fd >= 0 && fsync(fd) == 0, "fsync of a folder");
    close(fd);
}

static void remove_file(const char *folder, const char *name)
{
    struct path path = path_in(folder, name);
    check_call(unlink(path.text) == 0 || errno == ENOENT, path.text);
}

static void write_at(int fd, const uint8_t *data, size_t size, off_t at)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, at);
        check_call(n > 0, "pwrite");
        data += n;
        size -= (size_t)n;
        at += n;
    }
}

/* Up to `size` bytes; fewer at the file's end. */
static size_t read_at(int fd, uint8_t *data, size_t size, off_t at)
{
    size_t got = 0;
    ssize_t n;
    while (got < size && (n = pread(fd, data + got, size - got, at + (off_t)got)) != 0) {
        check_call(n > 0, "pread");
        got += (size_t)n;
    }
    return got;
}

/* ---- a log: records behind each other, in a new file after some; the last two files are kept ----
 */

#define LOG_RECORDS 100u

static uint64_t log_number(uint64_t step)
{
    return (step - 1) / LOG_RECORDS;
}

static size_t log_size(const struct writer *w, uint64_t step)
{
    uint64_t x = draw(w, step, 0);
    return x % 16 == 0 ? 1 + x / 16 % (48 << 10) : 1 + x / 16 % (6 << 10);
}

static off_t log_offset(const struct writer *w, uint64_t step)
{
    off_t at = 0;
    for (uint64_t n = log_number(step) * LOG_RECORDS + 1; n < step; n++)
        at += (off_t)log_size(w, n);
    return at;
}

static const char *log_name(uint64_t number)
{
    static char name[32];
    snprintf(name, sizeof(name), "log.%llu", (unsigned long long)number);
    return name;
}

static void log_step(struct writer *w, uint64_t step)
{
    uint64_t number = log_number(step);
    bool is_first = (step - 1) % LOG_RECORDS == 0;
    /* the second log of a machine waits within write(2) */
    bool waits_in_write = w->number % 2 == 1;
    size_t size = log_size(w, step);
    int fd =
        must_open(w->folder, log_name(number), O_WRONLY | O_CREAT | (waits_in_write ? O_DSYNC : 0));
    fill(w, step, 0, buf, size);
    write_at(fd, buf, size, log_offset(w, step));
    if (!waits_in_write)
        check_call((step % 3 == 0 ? fdatasync(fd) : fsync(fd)) == 0, "fsync");
    close(fd);
    if (is_first) {
        if (number >= 2)
            remove_file(w->folder, log_name(number - 2));
        sync_folder(w->folder);
    }
}

/* All whole records of one file; returns their number, and what lies behind in *rest. */
static uint64_t log_read(const struct writer *w, uint64_t number, size_t *rest)
{
    int fd = open_in(w->folder, log_name(number), O_RDONLY);
    uint64_t count = 0;
    off_t at = 0;
    *rest = 0;
    if (fd < 0)
        return 0;
    for (; count < LOG_RECORDS; count++) {
        uint64_t step = number * LOG_RECORDS + count + 1;
        size_t size = log_size(w, step), got = read_at(fd, buf, size, at);
        fill(w, step, 0, want, size);
        if (got != size || memcmp(buf, want, size) != 0) {
            /* the beginnings of a record that nobody was told of: its bytes, or none yet */
            for (size_t i = 0; i < got; i++)
                if (buf[i] != want[i] && buf[i] != 0)
                    FAIL("%s/%s: byte %zu of record %llu", w->folder, log_name(number), i,
                         (unsigned long long)step);
            *rest = got;
            break;
        }
        at += (off_t)size;
    }
    struct stat st;
    check_call(fstat(fd, &st) == 0, "fstat");
    if (st.st_size > at + (off_t)*rest)
        FAIL("%s/%s is longer than its records", w->folder, log_name(number));
    close(fd);
    return count;
}

static bool log_exists(const struct writer *w, uint64_t number)
{
    return access(path_in(w->folder, log_name(number)).text, F_OK) == 0;
}

static uint64_t log_check(struct writer *w)
{
    uint64_t newest = w->done > 0 ? log_number(w->done) : 0;
    while (log_exists(w, newest + 1))
        newest++;
    size_t rest, none;
    uint64_t found = newest * LOG_RECORDS + log_read(w, newest, &rest);
    if (found < w->done)
        FAIL("log %u: %llu of %llu records", w->number, (unsigned long long)found,
             (unsigned long long)w->done);
    if (newest >= 1 && log_read(w, newest - 1, &none) != LOG_RECORDS)
        FAIL("log %u: file %llu, before the last, lacks records", w->number,
             (unsigned long long)newest - 1);
    /* The first step of a file ends with removing the one two before. */
    if (newest >= 2 && log_exists(w, newest - 2) && found == newest * LOG_RECORDS + 1)
        found--;
    if (found < w->done)
        FAIL("log %u: file %llu was removed and is there", w->number,
             (unsigned long long)newest - 2);
    for (uint64_t n = 0; n + 2 <= newest; n++)
        if (log_exists(w, n) && (n + 2 < newest || found > newest * LOG_RECORDS))
            FAIL("log %u: file %llu was removed and is there", w->number, (unsigned long long)n);
    return found;
}

/* ---- files that are replaced by renaming, moved to another folder, and removed ---- */

#define FILES 24u

enum { FILE_REPLACE, FILE_MOVE, FILE_REMOVE };

struct file {
    uint64_t step; /* that wrote it; 0: there is none */
    unsigned place;
};

static unsigned file_kind(const struct writer *w, uint64_t step)
{
    uint64_t x = draw(w, step, 1) % 10;
    return x < 6 ? FILE_REPLACE : x < 8 ? FILE_MOVE : FILE_REMOVE;
}

static unsigned file_number(const struct writer *w, uint64_t step)
{
    return (unsigned)(draw(w, step, 2) % FILES);
}

static size_t file_size(const struct writer *w, uint64_t step)
{
    uint64_t x = draw(w, step, 3);
    /* at least the sector's head, which tells the step */
    return 24 + (x % 8 == 0 ? x / 8 % (SIZE_MAX_BYTES - 24) : x / 8 % (12 << 10));
}

/* What the file becomes by this step. */
static struct file file_after(const struct writer *w, uint64_t step, struct file before)
{
    switch (file_kind(w, step)) {
    case FILE_REPLACE:
        return (struct file){step, before.step != 0 ? before.place : (unsigned)(step % 2)};
    case FILE_MOVE:
        return (struct file){before.step, before.step != 0 ? !before.place : 0};
    default:
        return (struct file){0};
    }
}

static struct path file_folder(const struct writer *w, unsigned place)
{
    return path_in(w->folder, place == 0 ? "here" : "there");
}

static const char *file_name(unsigned number)
{
    static char name[32];
    snprintf(name, sizeof(name), "file-%u", number);
    return name;
}

static struct file file_read(const struct writer *w, unsigned number)
{
    struct file found = {0};
    for (unsigned place = 0; place < 2; place++) {
        struct path path = path_in(file_folder(w, place).text, file_name(number));
        int fd = open(path.text, O_RDONLY);
        if (fd < 0 && errno == ENOENT)
            continue;
        check_call(fd >= 0, path.text);
        if (found.step != 0)
            FAIL("%s is in two folders", path.text);
        memset(buf, 0, SECTOR);
        size_t size = read_at(fd, buf, BUF_BYTES, 0);
        found = (struct file){step_of(buf), place};
        if (found.step == 0 || size != file_size(w, found.step))
            FAIL("%s: %zu bytes, step %llu", path.text, size, (unsigned long long)found.step);
        fill(w, found.step, number, want, size);
        if (memcmp(buf, want, size) != 0)
            FAIL("%s: not what step %llu wrote", path.text, (unsigned long long)found.step);
        close(fd);
    }
    return found;
}

static uint64_t files_check(struct writer *w)
{
    struct file is[FILES], model[FILES] = {0};
    if (w->done == 0) {
        for (unsigned place = 0; place < 2; place++)
            check_call(mkdir(file_folder(w, place).text, 0777) == 0 || errno == EEXIST, "mkdir");
        sync_folder(w->folder);
    }
    for (unsigned i = 0; i < FILES; i++)
        is[i] = file_read(w, i);
    for (uint64_t step = 1; step <= w->done + AHEAD; step++) {
        unsigned wrong = FILES;
        for (unsigned i = 0; i < FILES && step > w->done; i++)
            wrong -=
                is[i].step == model[i].step && (is[i].step == 0 || is[i].place == model[i].place);
        if (wrong == 0)
            return step - 1;
        unsigned number = file_number(w, step);
        model[number] = file_after(w, step, model[number]);
    }
    FAIL("files %u: not what they were after step %llu, or any after that", w->number,
         (unsigned long long)w->done);
}

static void file_step(struct writer *w, uint64_t step)
{
    unsigned number = file_number(w, step);
    struct file before = {0}, after;
    for (uint64_t n = 1; n < step; n++)
        if (file_number(w, n) == number)
            before = file_after(w, n, before);
    after = file_after(w, step, before);
    struct path folder = file_folder(w, after.step != 0 ? after.place : before.place);
    struct path to = path_in(folder.text, file_name(number)), from;
    switch (file_kind(w, step)) {
    case FILE_REPLACE: {
        size_t size = file_size(w, step);
        from = path_in(w->folder, "new");
        int fd = must_open(w->folder, "new", O_WRONLY | O_CREAT | O_TRUNC);
        fill(w, step, number, buf, size);
        write_at(fd, buf, size, 0);
        check_call(fsync(fd) == 0, "fsync");
        close(fd);
        check_call(rename(from.text, to.text) == 0, "rename");
        sync_folder(w->folder);
        break;
    }
    case FILE_MOVE:
        /* After an end in the middle of it, the file may have been moved already. */
        from = path_in(file_folder(w, before.place).text, file_name(number));
        if (before.step != 0 && access(from.text, F_OK) == 0) {
            check_call(rename(from.text, to.text) == 0, "rename");
            sync_folder(file_folder(w, before.place).text);
        }
        break;
    default:
        remove_file(folder.text, file_name(number));
    }
    sync_folder(folder.text);
}

/* ---- sectors of one file, written in place; holes are punched, ranges zeroed ---- */

#define PLACES 6144u /* sectors: 3 MiB */

enum { PLACE_WRITE, PLACE_PUNCH, PLACE_ZERO };

struct range {
    unsigned kind;
    uint64_t first, count; /* sectors */
};

/* Whether this writer goes past the guest's page cache. */
static bool is_direct(const struct writer *w)
{
    return w->number % 2 == 0;
}

static struct range place_of(const struct writer *w, uint64_t step)
{
    uint64_t x = draw(w, step, 4), kind = x % 12;
    struct range r = {kind < 9 ? PLACE_WRITE : kind < 11 ? PLACE_PUNCH : PLACE_ZERO, 0, 0};
    x /= 12;
    r.count = 1 + (x % 4 == 0 ? x / 4 % (SIZE_MAX_BYTES / SECTOR) : x / 4 % 16);
    r.first = draw(w, step, 5) % PLACES;
    if (r.count >= BLOCK / SECTOR && x % 3 != 0) { /* most on whole blocks, as programs write */
        r.first &= ~UINT64_C(7);
        r.count &= ~UINT64_C(7);
    }
    if (r.count > PLACES - r.first)
        r.count = PLACES - r.first;
    return r;
}

static void place_step(struct writer *w, uint64_t step)
{
    struct range r = place_of(w, step);
    off_t at = (off_t)(r.first * SECTOR), size = (off_t)(r.count * SECTOR);
    int fd = must_open(w->folder, "places", O_WRONLY | (is_direct(w) ? O_DIRECT : 0));
    if (r.kind == PLACE_WRITE) {
        fill(w, step, r.first, buf, (size_t)size);
        write_at(fd, buf, (size_t)size, at);
    } else {
        int mode = r.kind == PLACE_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
        check_call(fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, at, size) == 0, "fallocate");
    }
    check_call((step % 5 == 0 ? fsync(fd) : fdatasync(fd)) == 0, "fdatasync");
    close(fd);
}

/* What step each sector holds; 0: zeroes. */
static void place_read(const struct writer *w, uint64_t held[PLACES])
{
    static const uint8_t zeroes[SECTOR];
    int fd = must_open(w->folder, "places", O_RDONLY | (is_direct(w) ? O_DIRECT : 0));
    for (uint64_t i = 0; i < PLACES; i++) {
        size_t in_buf = i * SECTOR % SIZE_MAX_BYTES;
        const uint8_t *sector = buf + in_buf;
        if (in_buf == 0 && read_at(fd, buf, SIZE_MAX_BYTES, (off_t)(i * SECTOR)) != SIZE_MAX_BYTES)
            FAIL("%s/places is short", w->folder);
        held[i] = step_of(sector);
        if (held[i] == 0 && memcmp(sector, zeroes, SECTOR) == 0)
            continue;
        fill(w, held[i], i, want, SECTOR);
        if (memcmp(sector, want, SECTOR) != 0)
            FAIL("%s/places: sector %llu is not what step %llu wrote", w->folder,
                 (unsigned long long)i, (unsigned long long)held[i]);
    }
    close(fd);
}

static uint64_t places_check(struct writer *w)
{
    static uint64_t is[PLACES], model[PLACES];
    memset(model, 0, sizeof(model));
    int fd = open_in(w->folder, "places", O_RDWR | O_CREAT);
    struct stat st;
    check_call(fd >= 0 && fstat(fd, &st) == 0, "open places");
    if (w->done == 0 && st.st_size != PLACES * SECTOR) {
        check_call(ftruncate(fd, PLACES * SECTOR) == 0 && fsync(fd) == 0, "make places");
        sync_folder(w->folder);
    }
    close(fd);
    place_read(w, is);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < PLACES; i++)
        wrong += is[i] != 0;
    for (uint64_t step = 1; step <= w->done + AHEAD; step++) {
        /* Before this step: does all agree, but for what this step may have done already? */
        struct range r = place_of(w, step);
        uint64_t becomes = r.kind == PLACE_WRITE ? step : 0, explained = 0;
        for (uint64_t i = r.first; i < r.first + r.count; i++)
            explained += is[i] != model[i] && is[i] == becomes;
        if (step > w->done && wrong == explained)
            return step - 1;
        for (uint64_t i = r.first; i < r.first + r.count; i++) {
            wrong -= is[i] != model[i];
            model[i] = becomes;
            wrong += is[i] != model[i];
        }
    }
    FAIL("places %u: not what they were after step %llu, or any after that", w->number,
         (unsigned long long)w->done);
}

/* ---- all of them ---- */

struct kind {
    const char *name;
    /* Check everything there is; returns the last step that was taken. */
    uint64_t (*check)(struct writer *w);
    void (*step)(struct writer *w, uint64_t step);
};

static const struct kind kinds[] = {
    {"log", log_check, log_step},         {"log", log_check, log_step},
    {"files", files_check, file_step},    {"files", files_check, file_step},
    {"places", places_check, place_step}, {"places", places_check, place_step},
};
#define WRITERS (sizeof(kinds) / sizeof(kinds[0]))

static void work(struct writer *w, uint64_t from)
{
    for (uint64_t step = from;; step++) {
        kinds[w->number].step(w, step);
        tell("step %u %llu", w->number, (unsigned long long)step);
    }
}

/* Check what there is; from[] becomes the steps to go on with. */
static void begin(struct writer *writers, char **argv, uint64_t *from)
{
    for (unsigned i = 0; i < WRITERS; i++) {
        struct writer *w = &writers[i];
        *w = (struct writer){.number = i,
                             .seed = strtoull(argv[3], NULL, 10),
                             .done = strtoull(argv[4 + i], NULL, 10)};
        snprintf(w->folder, sizeof(w->folder), "%.40s/%s-%u", argv[1], kinds[i].name, i);
        if (w->done == 0 && mkdir(w->folder, 0777) == 0)
            sync_folder(argv[1]);
        from[i] = kinds[i].check(w) + 1;
        tell("checked %u %llu", i, (unsigned long long)from[i] - 1);
    }
    tell("ready");
}

int main(int argc, char **argv)
{
    struct writer writers[WRITERS];
    uint64_t from[WRITERS];
    pid_t pids[WRITERS];
    port = argc > 2 ? open(argv[2], O_RDWR) : -1;
    if (argc != 4 + (int)WRITERS || port < 0) {
        fprintf(stderr, "usage: writers FOLDER PORT SEED DONE... (%zu numbers)\n", WRITERS);
        return 2;
    }
    buf = aligned_alloc(BLOCK, BUF_BYTES);
    want = aligned_alloc(BLOCK, BUF_BYTES);
    begin(writers, argv, from);
    for (unsigned i = 0; i < WRITERS; i++) {
        pids[i] = fork();
        check_call(pids[i] >= 0, "fork");
        if (pids[i] == 0)
            work(&writers[i], from[i]);
    }
    /* The host's word. Writers do not end by themselves. */
    char word[16];
    struct pollfd waits = {.fd = port, .events = POLLIN};
    while (poll(&waits, 1, 100) == 0)
        if (waitpid(-1, NULL, WNOHANG) > 0)
            FAIL("a writer ended");
    check_call(read(port, word, sizeof(word)) > 0, "read the port");
    for (unsigned i = 0; i < WRITERS; i++)
        kill(pids[i], SIGKILL);
    while (wait(NULL) > 0)
        ;
    tell("ended");
    return 0;
}
