/*
 * rundir_test.c - names, locks and sockets of machines; what is left when one was killed
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/rundir.h"

struct folder {
    char path[32], sub[64];
};

static int folder_setup(void **state)
{
    struct folder *f = calloc(1, sizeof(*f));
    strcpy(f->path, "/tmp/doppel-rundir-XXXXXX");
    if (mkdtemp(f->path) == NULL)
        return -1;
    snprintf(f->sub, sizeof(f->sub), "%s/doppel", f->path);
    setenv("XDG_RUNTIME_DIR", f->path, 1);
    *state = f;
    return 0;
}

static int folder_teardown(void **state)
{
    struct folder *f = *state;
    /* Empty, or the test left something behind. */
    int rc = rmdir(f->sub) != 0 && errno != ENOENT ? -1 : rmdir(f->path);
    free(f);
    return rc;
}

static void test_names(void **state)
{
    struct err e;
    assert_int_equal(rundir_check_name("a", &e), 0);
    assert_int_equal(rundir_check_name("Web-1.test_2", &e), 0);
    assert_int_not_equal(rundir_check_name("", &e), 0);
    assert_int_not_equal(rundir_check_name(".a", &e), 0);
    assert_int_not_equal(rundir_check_name("-a", &e), 0);
    assert_int_not_equal(rundir_check_name("a/b", &e), 0);
    assert_int_not_equal(rundir_check_name("a\n", &e), 0);
    assert_int_not_equal(rundir_check_name("\xc3\xa9", &e), 0);
    char name[RUNDIR_NAME_MAX + 2];
    memset(name, 'x', sizeof(name));
    name[RUNDIR_NAME_MAX] = '\0';
    assert_int_equal(rundir_check_name(name, &e), 0);
    name[RUNDIR_NAME_MAX] = 'x';
    name[RUNDIR_NAME_MAX + 1] = '\0';
    assert_int_not_equal(rundir_check_name(name, &e), 0);
}

static void test_claim(void **state)
{
    struct rundir_claim claim, second;
    struct rundir_entry entry;
    struct stat st;
    struct err e;
    assert_int_equal(rundir_find("web", &entry, &e), -ESRCH);
    assert_int_equal(rundir_claim("web", NULL, &claim, &e), 0);
    assert_int_equal(rundir_listen(&claim, &e), 0);
    assert_int_equal(stat(claim.socket, &st), 0);
    assert_int_equal(st.st_mode, S_IFSOCK | 0600);
    assert_int_equal(rundir_find("web", &entry, &e), 0);
    assert_int_equal(entry.pid, getpid());
    assert_string_equal(entry.socket, claim.socket);
    assert_true(rundir_is_held(&entry));
    assert_int_not_equal(rundir_claim("web", NULL, &second, &e), 0);
    assert_non_null(strstr(e.msg, "in use by a running machine"));
    rundir_release(&second);
    assert_true(rundir_is_held(&entry));
    rundir_close_socket(&claim);
    assert_int_not_equal(stat(claim.socket, &st), 0);
    assert_true(rundir_is_held(&entry));
    rundir_release(&claim);
    assert_false(rundir_is_held(&entry));
    rundir_release(&claim);
}

static void count_entry(void *ctx, const struct rundir_entry *entry)
{
    ++*(unsigned *)ctx;
}

/* A process claims the name and is killed. */
static void kill_holder(const char *name)
{
    struct rundir_claim claim;
    struct err e;
    pid_t pid = fork();
    if (pid == 0) {
        if (rundir_claim(name, NULL, &claim, &e) != 0 || rundir_listen(&claim, &e) != 0)
            _exit(1);
        raise(SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

static void test_killed(void **state)
{
    struct rundir_claim claim;
    struct rundir_entry entry;
    struct err e;
    unsigned count = 0;
    kill_holder("one");
    assert_int_equal(rundir_find("one", &entry, &e), -ESRCH);
    assert_non_null(strstr(e.msg, "was killed"));
    assert_int_equal(rundir_find("one", &entry, &e), -ESRCH);
    assert_non_null(strstr(e.msg, "no machine named"));
    kill_holder("two");
    kill_holder("three"); /* which removes what "two" left, as every new machine does */
    assert_int_equal(rundir_list(count_entry, &count, &e), 0);
    assert_int_equal(count, 0);
    kill_holder("two");
    assert_int_equal(rundir_claim("two", NULL, &claim, &e), 0);
    assert_int_equal(rundir_listen(&claim, &e), 0);
    assert_int_equal(rundir_list(count_entry, &count, &e), 0);
    assert_int_equal(count, 1);
    rundir_release(&claim);
}

static void test_foreign_files(void **state)
{
    struct folder *f = *state;
    struct rundir_claim claim;
    struct err e;
    char path[128], victim[128];
    mkdir(f->sub, 0777);
    snprintf(victim, sizeof(victim), "%s/victim", f->path);
    snprintf(path, sizeof(path), "%s/web.lock", f->sub);
    fclose(fopen(victim, "w"));
    assert_int_equal(symlink(victim, path), 0);
    assert_int_not_equal(rundir_claim("web", NULL, &claim, &e), 0);
    rundir_release(&claim);
    unlink(path);
    mkdir(path, 0700);
    assert_int_not_equal(rundir_claim("web", NULL, &claim, &e), 0);
    rundir_release(&claim);
    rmdir(path);
    snprintf(path, sizeof(path), "%s/web.sock", f->sub);
    fclose(fopen(path, "w"));
    assert_int_not_equal(rundir_claim("web", NULL, &claim, &e), 0);
    rundir_release(&claim);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(unlink(victim), 0);
    struct stat st;
    assert_int_equal(stat(f->sub, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    rmdir(f->sub);
    assert_int_equal(symlink(f->path, f->sub), 0);
    assert_int_not_equal(rundir_claim("web", NULL, &claim, &e), 0);
    rundir_release(&claim);
    unlink(f->sub);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test_setup_teardown(test_claim, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_killed, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(test_foreign_files, folder_setup, folder_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
