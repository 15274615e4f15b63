/*
 * nbd_test.c - disks of NBD servers: nbdkit, and some that are no good
 *
 * nbdkit gets a listening socket, as from systemd: connections wait there until it takes them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/block/image.h"
#include "backend/block/nbd.h"
#include "backend/block/qcow2.h"
#include "backend/block/store.h"
#include "base/bits.h"

#define SIZE (UINT64_C(4) << 20)
#define SKIPPED 77 /* meson's */

struct fixture {
    char folder[64];
    char uri[128];
    int listener;
    pid_t server; /* 0: none */
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(f->folder, "/tmp/doppel-nbd-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", f->folder);
    snprintf(f->uri, sizeof(f->uri), "nbd+unix:///?socket=%s", address.sun_path);
    f->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(f->listener, 5), 0);
    *state = f;
    return 0;
}

static void kill_server(struct fixture *f)
{
    if (f->server == 0)
        return;
    kill(f->server, SIGKILL);
    assert_int_equal(waitpid(f->server, NULL, 0), f->server);
    f->server = 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[96];
    kill_server(f);
    if (f->listener >= 0)
        close(f->listener);
    snprintf(command, sizeof(command), "rm -r '%s'", f->folder);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

#define ARGUMENTS_MAX 12

/* nbdkit with these arguments, the last of which is NULL. */
static void serve(struct fixture *f, const char *const *arguments)
{
    const char *argv[ARGUMENTS_MAX + 3] = {"nbdkit", "--foreground"};
    f->server = fork();
    assert_true(f->server >= 0);
    if (f->server != 0)
        return;
    char pid[16];
    for (unsigned i = 0; i < ARGUMENTS_MAX && arguments[i] != NULL; i++)
        argv[2 + i] = arguments[i];
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    /* where a socket is handed over; not close-on-exec even if it is there already */
    if (dup2(f->listener, 3) == 3 && fcntl(3, F_SETFD, 0) == 0)
        execvp(argv[0], (char *const *)argv);
    _exit(127);
}

static struct image *open_uri(const struct fixture *f, bool is_read_only)
{
    struct image_config config = {.path = f->uri, .is_read_only = is_read_only};
    struct image *image;
    struct err e;
    if (image_open(&config, &image, &e) != 0)
        fail_msg("%s", e.msg);
    return image;
}

static uint64_t random_next(uint64_t *random, uint64_t limit)
{
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (*random >> 33) % limit;
}

/* ---- the bytes ---- */

/* A transfer in pieces of any length. */
static int transfer(struct image *image, bool is_write, uint64_t offset, uint64_t size,
                    uint8_t *data, uint64_t *random)
{
    struct iovec iov[8];
    unsigned count = 0;
    for (uint64_t at = 0; at < size; count++) {
        uint64_t n = 1 + random_next(random, size);
        n = count == 7 ? size - at : MIN(size - at, n);
        iov[count] = (struct iovec){data + at, n};
        at += n;
    }
    return image->ops->transfer(image, is_write, offset, size, iov, count);
}

static void compare(struct image *image, const uint8_t *model)
{
    uint8_t *got = malloc(SIZE);
    assert_int_equal(image_read(image, 0, got, SIZE), 0);
    assert_memory_equal(got, model, SIZE);
    free(got);
}

/* What is done to the disk is done to a model of it. */
static void exercise(struct fixture *f, const char *const *arguments)
{
    uint8_t *model = calloc(1, SIZE), *buf = malloc(SIZE);
    uint64_t random = 1;
    serve(f, arguments);
    struct image *image = open_uri(f, false);
    assert_int_equal(image->size, SIZE);
    assert_int_equal(image->format, BLOCK_FORMAT_RAW);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t offset = random_next(&random, SIZE / 512) * 512;
        uint64_t limit = i % 50 == 0 ? SIZE / 512 : 64;
        uint64_t size = 512 * (1 + random_next(&random, limit));
        size = MIN(size, SIZE - offset);
        switch (random_next(&random, 6)) {
        case 0:
            assert_int_equal(image->ops->write_zeroes(image, offset, size, i & 1), 0);
            memset(model + offset, 0, size);
            break;
        case 1: /* undefined afterwards: so it is written again */
            assert_int_equal(image->ops->discard(image, offset, size), 0);
            assert_int_equal(transfer(image, true, offset, size, model + offset, &random), 0);
            break;
        case 2:
            assert_int_equal(image->ops->flush(image), 0);
            break;
        case 3:
            assert_int_equal(transfer(image, false, offset, size, buf, &random), 0);
            assert_memory_equal(buf, model + offset, size);
            break;
        default:
            memset(model + offset, (int)i, size);
            model[offset] = (uint8_t)(i >> 8);
            assert_int_equal(transfer(image, true, offset, size, model + offset, &random), 0);
        }
    }
    compare(image, model);
    for (uint64_t at = 0, n; at < SIZE; at += n) { /* what is said to be zero, is */
        enum image_extent extent;
        n = SIZE - at;
        assert_int_equal(image_map_chain(image, at, &n, &extent), 0);
        assert_true(n != 0 && n <= SIZE - at);
        for (uint64_t i = at; extent == IMAGE_ZERO && i < at + n; i++)
            assert_int_equal(model[i], 0);
    }
    image_close(image);
    image = open_uri(f, true);
    compare(image, model);
    image_close(image);
    free(buf);
    free(model);
}

static void bytes(void **state)
{
    exercise(*state, (const char *const[]){"memory", "4M", NULL});
}

/* A server that refuses what is not whole blocks of 4 KiB, or more than 64 KiB. */
static void bytes_in_large_blocks(void **state)
{
    exercise(*state, (const char *const[]){"--filter=blocksize-policy", "memory", "4M",
                                           "blocksize-minimum=4096", "blocksize-preferred=16384",
                                           "blocksize-maximum=65536",
                                           "blocksize-error-policy=error", NULL});
}

/* One that knows no zeroes and no extents. */
static void bytes_of_a_poor_server(void **state)
{
    exercise(*state,
             (const char *const[]){"--filter=nozero", "--filter=noextents", "memory", "4M", NULL});
}

static void sizes_of_blocks(void **state)
{
    struct fixture *f = *state;
    serve(f, (const char *const[]){"--filter=blocksize-policy", "memory", "4197376",
                                   "blocksize-minimum=4096", "blocksize-preferred=32768", NULL});
    struct image *image = open_uri(f, false);
    assert_int_equal(image->physical_size, 32768);
    assert_int_equal(image->size, SIZE); /* what fills no block is out of reach */
    assert_int_equal(image->ops->resize(image, 2 * SIZE, NULL), -EOPNOTSUPP);
    image_close(image);
}

/* Another format lies in an export as in a file. */
static void qcow2_in_an_export(void **state)
{
    struct fixture *f = *state;
    struct qcow2_create create = {.size = UINT64_C(1) << 30, .version = 3, .cluster_size = 65536};
    struct store_config config = {.path = f->uri};
    struct store *store;
    struct err e;
    uint8_t data[70000], got[sizeof(data)];
    serve(f, (const char *const[]){"memory", "4M", NULL});
    assert_int_equal(store_open_nbd(&config, NBD_ANSWER_LIMIT_MS, &store, &e), 0);
    if (qcow2_format(store, &create, &e) != 0)
        fail_msg("%s", e.msg);
    store->ops->close(store);
    struct image *image = open_uri(f, false);
    assert_int_equal(image->format, BLOCK_FORMAT_QCOW2);
    assert_int_equal(image->size, create.size);
    memset(data, 'q', sizeof(data));
    uint64_t size = align_down(sizeof(data), 512), far = UINT64_C(900) << 20;
    assert_int_equal(image_write(image, far, data, size), 0);
    assert_int_equal(image->ops->flush(image), 0);
    image_close(image);
    image = open_uri(f, true);
    assert_int_equal(image_read(image, far, got, size), 0);
    assert_memory_equal(got, data, size);
    image_close(image);
    /* a server does not get at files of ours */
    create.backing_file = "/etc/passwd";
    create.backing_format = BLOCK_FORMAT_RAW;
    assert_int_equal(store_open_nbd(&config, NBD_ANSWER_LIMIT_MS, &store, &e), 0);
    assert_int_equal(qcow2_format(store, &create, &e), 0);
    store->ops->close(store);
    struct image_config hostile = {.path = f->uri, .format = BLOCK_FORMAT_QCOW2};
    assert_true(image_open(&hostile, &image, &e) < 0);
    assert_non_null(strstr(e.msg, "/etc/passwd"));
}

/* ---- flushes ---- */

static unsigned count_lines(const char *path, const char *what)
{
    char line[1024];
    unsigned n = 0;
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    while (fgets(line, sizeof(line), in) != NULL)
        n += strstr(line, what) != NULL;
    fclose(in);
    return n;
}

static void flushes_reach_the_server(void **state)
{
    struct fixture *f = *state;
    char log[128], path[96];
    uint8_t sector[512] = {1};
    snprintf(path, sizeof(path), "%s/log", f->folder);
    snprintf(log, sizeof(log), "logfile=%s", path);
    serve(f, (const char *const[]){"--filter=log", "memory", "4M", log, NULL});
    struct image *image = open_uri(f, false);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(image_write(image, i * 512, sector, sizeof(sector)), 0);
        assert_int_equal(image->ops->flush(image), 0);
    }
    image_close(image);
    assert_int_equal(count_lines(path, " Flush id="), 3);
    assert_int_equal(count_lines(path, " Write id="), 3);
}

/* A server that knows no flushes, but writes that are durable at once. */
static void writes_are_durable_by_themselves(void **state)
{
    struct fixture *f = *state;
    char path[96], script[160];
    uint8_t sector[512] = {1};
    snprintf(path, sizeof(path), "%s/log", f->folder);
    snprintf(script, sizeof(script), "pwrite=echo \"$@\" >>%s; cat >/dev/null", path);
    serve(f, (const char *const[]){"eval", "get_size=echo 1048576", "can_write=exit 0",
                                   "can_flush=exit 3", "can_fua=echo native", script,
                                   "pread=head -c $3 /dev/zero", NULL});
    struct image *image = open_uri(f, false);
    for (unsigned i = 1; i <= 3; i++)
        assert_int_equal(image_write(image, i * 512, sector, sizeof(sector)), 0);
    assert_int_equal(image->ops->flush(image), 0);
    image_close(image);
    assert_int_equal(count_lines(path, "pwrite "), 3);
    assert_int_equal(count_lines(path, " fua"), 3);
}

/* ---- read-only ---- */

static void read_only_exports(void **state)
{
    struct fixture *f = *state;
    struct image_config config = {.path = f->uri};
    struct image *image;
    struct err e;
    uint8_t sector[512];
    serve(f, (const char *const[]){"--readonly", "memory", "4M", NULL});
    assert_int_equal(image_open(&config, &image, &e), -EROFS);
    assert_non_null(strstr(e.msg, f->uri));
    assert_non_null(strstr(e.msg, ",ro"));
    image = open_uri(f, true);
    assert_int_equal(image_read(image, 0, sector, sizeof(sector)), 0);
    assert_int_equal(image_write(image, 0, sector, sizeof(sector)), -EROFS);
    image_close(image);
}

/* ---- servers that go away ---- */

static struct store *open_store(const struct fixture *f)
{
    struct store_config config = {.path = f->uri};
    struct store *store;
    struct err e;
    if (store_open_nbd(&config, NBD_ANSWER_LIMIT_MS, &store, &e) != 0)
        fail_msg("%s", e.msg);
    return store;
}

#define WRITERS 3
#define AREA (UINT64_C(1) << 20) /* of each writer */

struct writer {
    struct store *store;
    uint64_t area;
    atomic_uint written;
    atomic_bool is_stopping;
    bool flushes;
    int result;
    uint8_t model[AREA];
};

static void *write_on(void *ctx)
{
    struct writer *w = ctx;
    uint64_t random = w->area;
    while (w->result == 0 && !atomic_load(&w->is_stopping)) {
        uint64_t at = random_next(&random, AREA / 512) * 512;
        uint64_t size = 512 * (1 + random_next(&random, 32));
        size = MIN(size, AREA - at);
        unsigned kind = (unsigned)random_next(&random, 16);
        memset(w->model + at, kind == 0 ? 0 : (int)(1 + w->written % 255), size);
        w->result = kind == 0 ? w->store->ops->write_zeroes(w->store, w->area + at, size, at & 512)
                              : store_write(w->store, w->area + at, w->model + at, size);
        if (kind == 1 && w->result == 0 && w->flushes)
            w->result = w->store->ops->flush(w->store);
        atomic_fetch_add(&w->written, 1);
    }
    return NULL;
}

static struct writer *start_writers(struct store *store, pthread_t *threads, bool flushes)
{
    struct writer *writers = calloc(WRITERS, sizeof(*writers));
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i].store = store;
        writers[i].area = i * AREA;
        writers[i].flushes = flushes;
        assert_int_equal(pthread_create(&threads[i], NULL, write_on, &writers[i]), 0);
    }
    return writers;
}

/* Until each of them has done more. */
static void wait_for_writers(struct writer *writers, unsigned more)
{
    for (unsigned i = 0; i < WRITERS; i++) {
        unsigned from = atomic_load(&writers[i].written);
        while (atomic_load(&writers[i].written) < from + more)
            usleep(100);
    }
}

static void a_server_that_stays_away_is_an_error(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[WRITERS];
    uint8_t sector[512];
    serve(f, (const char *const[]){"memory", "4M", NULL});
    struct store *store = open_store(f);
    nbd_limit_answers(store, 300);
    struct writer *writers = start_writers(store, threads, true);
    wait_for_writers(writers, 30); /* in the middle of it */
    close(f->listener);
    f->listener = -1;
    kill_server(f);
    for (unsigned i = 0; i < WRITERS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(writers[i].result, -EIO);
    }
    assert_int_equal(store_read(store, 0, sector, sizeof(sector)), -EIO);
    assert_int_equal(store->ops->flush(store), -EIO);
    store->ops->close(store);
    free(writers);
}

static void a_silent_server_is_an_error(void **state)
{
    struct fixture *f = *state;
    struct store_config config = {.path = f->uri};
    struct err e;
    uint8_t sector[512] = {3};
    serve(f, (const char *const[]){"memory", "4M", NULL});
    struct store *store = open_store(f);
    assert_int_equal(store_write(store, 0, sector, sizeof(sector)), 0);
    kill(f->server, SIGSTOP);
    assert_int_equal(waitpid(f->server, NULL, WUNTRACED), f->server); /* it has stopped */
    nbd_limit_answers(store, 200);
    assert_int_equal(store_write(store, 0, sector, sizeof(sector)), -EIO);
    assert_int_equal(store->ops->flush(store), -EIO);
    store->ops->close(store);
    /* nor does opening wait for ever */
    config.is_read_only = true;
    assert_int_equal(store_open_nbd(&config, 200, &store, &e), -ETIMEDOUT);
    assert_non_null(strstr(e.msg, f->uri));
}

/* ---- servers that come back, and have forgotten what was not flushed ---- */

/* nbdkit keeps what is written in a cache of its own, and writes it to a file when it is to be
 * flushed; the cache is gone when it is killed. */
static void serve_forgetful(struct fixture *f, uint64_t size)
{
    char path[96], option[128];
    snprintf(path, sizeof(path), "%s/disk", f->folder);
    snprintf(option, sizeof(option), "file=%s", path);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
    serve(f, (const char *const[]){"--filter=cache", "file", option, "cache=writeback", NULL});
}

/* A byte of the file behind the server. */
static uint8_t byte_of_disk(const struct fixture *f, uint64_t offset)
{
    char path[96];
    uint8_t byte;
    snprintf(path, sizeof(path), "%s/disk", f->folder);
    int fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
    return byte;
}

static void forgotten_writes_are_written_again(void **state)
{
    struct fixture *f = *state;
    uint8_t flushed[512], later[512], got[512];
    memset(flushed, 1, sizeof(flushed));
    memset(later, 2, sizeof(later));
    serve_forgetful(f, SIZE);
    struct store *store = open_store(f);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(store_write(store, i * 65536, flushed, sizeof(flushed)), 0);
    assert_int_equal(store->ops->flush(store), 0);
    assert_int_equal(byte_of_disk(f, 0), 1);
    assert_int_equal(store_write(store, 0, flushed, sizeof(flushed)), 0);
    assert_int_equal(store_write(store, 0, later, sizeof(later)), 0); /* in this order */
    assert_int_equal(store->ops->write_zeroes(store, 65536, sizeof(later), false), 0);
    kill_server(f);
    assert_int_equal(byte_of_disk(f, 0), 1); /* so it is forgetful */
    serve_forgetful(f, SIZE);
    assert_int_equal(store_read(store, 0, got, sizeof(got)), 0);
    assert_memory_equal(got, later, sizeof(got));
    assert_int_equal(store_read(store, 65536, got, sizeof(got)), 0);
    assert_int_equal(got[0], 0);
    assert_int_equal(store->ops->flush(store), 0);
    kill_server(f);
    assert_int_equal(byte_of_disk(f, 0), 2);
    assert_int_equal(byte_of_disk(f, 65536), 0);
    assert_int_equal(byte_of_disk(f, 131072), 1);
    store->ops->close(store);
}

static void work_goes_on_over_restarts(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[WRITERS];
    uint8_t *got = malloc(AREA);
    serve_forgetful(f, SIZE);
    struct store *store = open_store(f);
    struct writer *writers = start_writers(store, threads, true);
    for (unsigned i = 0; i < 8; i++) {
        wait_for_writers(writers, 20);
        kill_server(f);
        serve_forgetful(f, SIZE);
    }
    wait_for_writers(writers, 20);
    for (unsigned i = 0; i < WRITERS; i++)
        atomic_store(&writers[i].is_stopping, true);
    for (unsigned i = 0; i < WRITERS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(writers[i].result, 0);
        assert_int_equal(store_read(store, i * AREA, got, AREA), 0);
        assert_memory_equal(got, writers[i].model, AREA);
    }
    assert_int_equal(store->ops->flush(store), 0);
    kill_server(f); /* what the flush has covered is there now */
    for (unsigned i = 0; i < WRITERS; i++)
        for (uint64_t at = 0; at < AREA; at += 512)
            assert_int_equal(byte_of_disk(f, i * AREA + at), writers[i].model[at]);
    store->ops->close(store);
    free(writers);
    free(got);
}

/* What is not flushed is limited: it is flushed without being asked for, in the end. */
static void the_journal_is_bounded(void **state)
{
    struct fixture *f = *state;
    uint64_t piece = UINT64_C(4) << 20, size = UINT64_C(96) << 20;
    uint8_t *data = malloc(piece);
    memset(data, 5, piece);
    serve_forgetful(f, size);
    struct store *store = open_store(f);
    for (uint64_t at = 0; at < size; at += piece)
        assert_int_equal(store_write(store, at, data, piece), 0);
    assert_int_equal(byte_of_disk(f, 0), 5);
    assert_int_equal(byte_of_disk(f, size - 1), 0);
    store->ops->close(store);
    free(data);
}

static void another_export_is_not_taken(void **state)
{
    struct fixture *f = *state;
    uint8_t sector[512] = {6};
    serve_forgetful(f, SIZE);
    struct store *store = open_store(f);
    assert_int_equal(store_write(store, 0, sector, sizeof(sector)), 0);
    kill_server(f);
    serve_forgetful(f, SIZE * 2);
    assert_int_equal(store->ops->flush(store), -EIO);
    assert_int_equal(byte_of_disk(f, 0), 0);
    store->ops->close(store);
}

/* ---- what is no good ---- */

static void refuse(const char *uri, const char *why)
{
    struct image_config config = {.path = uri, .is_read_only = true};
    struct image *image;
    struct err e;
    assert_true(image_open(&config, &image, &e) < 0);
    if (strstr(e.msg, why) == NULL || strstr(e.msg, uri) == NULL)
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void bad_uris(void **state)
{
    struct fixture *f = *state;
    char uri[256];
    refuse("nbd+unix:///?socket=/nonexistent", "No such file");
    refuse("nbd+unix:///", "socket");
    refuse("nbd://%", "");
    /* a URI does not make us read files */
    snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s/socket&tls-psk-file=/etc/passwd", f->folder);
    refuse(uri, "not permitted");
    assert_false(nbd_is_uri("nbd:localhost:10809"));
    assert_false(nbd_is_uri("./nbd://x"));
    assert_true(nbd_is_uri("nbd://x"));
}

/* Bytes that are no protocol, in several places of the handshake. */
static void *talk_nonsense(void *ctx)
{
    struct fixture *f = ctx;
    static const struct {
        const char *bytes;
        size_t size;
    } hello[] = {
        {"HTTP/1.1 400 Bad Request\r\n\r\n", 28},
        {"NBDMAGICIHAVEOPT\0\3garbage that is no answer to an option", 56},
        {"NBDMAGIC\0\0\x42\2\x81\x86\x12\x53\xff\xff\xff\xff\xff\xff\xff\xff\0\0", 26},
        {"NBDMAGIC", 8},
        {"", 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(hello); i++) {
        int peer = accept(f->listener, NULL, NULL);
        assert_true(peer >= 0);
        assert_int_equal(send(peer, hello[i].bytes, hello[i].size, MSG_NOSIGNAL), hello[i].size);
        shutdown(peer, SHUT_WR);
        char drain[256];
        while (recv(peer, drain, sizeof(drain), 0) > 0)
            ;
        close(peer);
    }
    return NULL;
}

static void nonsense_is_refused(void **state)
{
    struct fixture *f = *state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, talk_nonsense, f), 0);
    for (unsigned i = 0; i < 5; i++)
        refuse(f->uri, "connect");
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* ---- TLS ---- */

/* Certificates, in folders for the server and for homes of clients: `mine` knows the authority that
 * vouches for the server, `other` another one, `empty` none. */
static void make_keys(const struct fixture *f)
{
    static const char script[] =
        "set -e; cd '%s'; "
        "for a in mine other; do h=$a/.config/pki/libnbd; mkdir -p $h; "
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch -days 2 "
        "-subj /CN=$a -addext basicConstraints=critical,CA:TRUE -keyout $a-key.pem "
        "-out $h/ca-cert.pem 2>>openssl.log; done; "
        "mkdir -p empty right wrong; "
        "for s in right:127.0.0.1 wrong:127.0.0.9; do d=${s%%%%:*}; "
        "echo subjectAltName=IP:${s##*:} >$d/names; "
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch -subj /CN=$d "
        "-keyout $d/server-key.pem -out $d/request 2>>openssl.log; "
        "openssl x509 -req -in $d/request -CA mine/.config/pki/libnbd/ca-cert.pem -CAkey "
        "mine-key.pem "
        "-CAcreateserial -days 2 -extfile $d/names -out $d/server-cert.pem 2>>openssl.log; "
        "cp mine/.config/pki/libnbd/ca-cert.pem $d/; done";
    char command[2048];
    snprintf(command, sizeof(command), script, f->folder);
    assert_int_equal(system(command), 0);
}

/* The server listens on TCP, with the certificate in `keys`. */
static void serve_tls(struct fixture *f, const char *keys)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    socklen_t size = sizeof(address);
    char option[128];
    kill_server(f);
    close(f->listener);
    f->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(f->listener, 5), 0);
    assert_int_equal(getsockname(f->listener, (struct sockaddr *)&address, &size), 0);
    snprintf(f->uri, sizeof(f->uri), "nbds://127.0.0.1:%u", ntohs(address.sin_port));
    snprintf(option, sizeof(option), "--tls-certificates=%s/%s", f->folder, keys);
    serve(f, (const char *const[]){"--tls=require", option, "memory", "4M", NULL});
}

static void live_in(const struct fixture *f, const char *home)
{
    char path[96];
    snprintf(path, sizeof(path), "%s/%s", f->folder, home);
    setenv("HOME", path, 1);
}

static void servers_prove_who_they_are(void **state)
{
    struct fixture *f = *state;
    uint8_t sector[512] = {4}, got[512];
    char uri[256];
    make_keys(f);
    serve_tls(f, "right");
    live_in(f, "mine");
    struct image *image = open_uri(f, false);
    assert_int_equal(image_write(image, 512, sector, sizeof(sector)), 0);
    assert_int_equal(image->ops->flush(image), 0);
    assert_int_equal(image_read(image, 512, got, sizeof(got)), 0);
    assert_memory_equal(got, sector, sizeof(got));
    image_close(image);
    live_in(f, "other"); /* the server may be anybody's */
    refuse(f->uri, "vouches for it");
    live_in(f, "empty");
    if (access("/etc/pki/libnbd/ca-cert.pem", F_OK) != 0)
        refuse(f->uri, "ca-cert.pem");
    live_in(f, "mine");
    snprintf(uri, sizeof(uri), "nbd%s", f->uri + 4); /* what is not TLS */
    refuse(uri, "requires TLS");
    serve_tls(f, "wrong"); /* the right authority, another server */
    refuse(f->uri, "not for a host of that name");
    refuse("nbds+unix:///?socket=/nonexistent", "only TCP");
    refuse("nbds+unix://127.0.0.1/?socket=/nonexistent", "only TCP");
}

/* A server that knows no TLS, or somebody on the way to it who says so. */
static void tls_is_not_talked_away(void **state)
{
    struct fixture *f = *state;
    make_keys(f);
    serve_tls(f, "right");
    kill_server(f);
    live_in(f, "mine");
    serve(f, (const char *const[]){"memory", "4M", NULL});
    refuse(f->uri, "refused TLS");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(bytes),
        TEST(bytes_in_large_blocks),
        TEST(bytes_of_a_poor_server),
        TEST(sizes_of_blocks),
        TEST(qcow2_in_an_export),
        TEST(flushes_reach_the_server),
        TEST(writes_are_durable_by_themselves),
        TEST(read_only_exports),
        TEST(a_server_that_stays_away_is_an_error),
        TEST(a_silent_server_is_an_error),
        TEST(forgotten_writes_are_written_again),
        TEST(work_goes_on_over_restarts),
        TEST(the_journal_is_bounded),
        TEST(another_export_is_not_taken),
    };
    const struct CMUnitTest without_server[] = {TEST(bad_uris), TEST(nonsense_is_refused)};
    const struct CMUnitTest tls[] = {
        TEST(servers_prove_who_they_are),
        TEST(tls_is_not_talked_away),
    };
    int failed = cmocka_run_group_tests_name("no server", without_server, NULL, NULL);
    if (system("nbdkit --version >/dev/null 2>&1") != 0) {
        print_message("the rest is not tested: nbdkit is missing (apt-get install nbdkit)\n");
        return failed != 0 ? failed : SKIPPED;
    }
    failed += cmocka_run_group_tests_name("nbdkit", tests, NULL, NULL);
    if (system("openssl version >/dev/null 2>&1") != 0) {
        print_message("TLS is not tested: openssl is missing (apt-get install openssl)\n");
        return failed != 0 ? failed : SKIPPED;
    }
    return failed + cmocka_run_group_tests_name("TLS", tls, NULL, NULL);
}
