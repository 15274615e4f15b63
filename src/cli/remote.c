/*
 * remote.c - the commands on running machines: ps, status, pause and so on
 *
 * Answers go to standard output, for people or, with --json, as the machine gave them.
 */
#include "cli/remote.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/rundir.h"
#include "base/bits.h"
#include "base/log.h"
#include "base/parse.h"
#include "cli/client.h"
#include "cli/output.h"
#include "cli/run.h"
#include "cli/suggest.h"

#define REMOTE_TIMEOUT_MS 30000
#define REMOTE_PS_TIMEOUT_MS 2000
#define REMOTE_END_MS 5000
#define REMOTE_STOP_SECONDS_MAX 86400

#define REMOTE_VALUES_MAX 2

enum remote_option {
    OPTION_JSON,
    OPTION_TIMEOUT,
    OPTION_HARD,
    OPTION_BUTTON,
    OPTION_NO_WAIT,
    OPTION_HELP,
    OPTION_COUNT
};

struct remote {
    const struct remote_command *command;
    const char *machine;                   /* NULL: none was given */
    const char *values[REMOTE_VALUES_MAX]; /* what follows; NULL: not given */
    unsigned value_count;
    bool has[OPTION_COUNT];
    unsigned timeout_s;
    struct rundir_entry entry;
};

static int remote_ps(struct remote *r);
static int remote_status(struct remote *r);
static int remote_pause(struct remote *r);
static int remote_resume(struct remote *r);
static int remote_stop(struct remote *r);
static int remote_stats(struct remote *r);
static int remote_engine(struct remote *r);
static int remote_balloon(struct remote *r);
static int remote_link(struct remote *r);
static int remote_resize(struct remote *r);

/* clang-format off */
static const struct {
    const char *name, *arg, *help;
} remote_options[OPTION_COUNT] = {
    [OPTION_JSON] = {"json", NULL, "Print the answer as JSON"},
    [OPTION_TIMEOUT] = {"timeout", "SECONDS",
        "How long the guest may take to shut down (default 60)"},
    [OPTION_HARD] = {"hard", NULL, "Stop at once, as if the plug was pulled"},
    [OPTION_BUTTON] = {"button", NULL, "Never stop hard: if the guest does not shut down, leave it be"},
    [OPTION_NO_WAIT] = {"no-wait", NULL, "Do not wait until it has stopped"},
    [OPTION_HELP] = {"help", NULL, "Print this text"},
};

#define ALWAYS (BIT(OPTION_JSON) | BIT(OPTION_HELP))
static const struct remote_command {
    const char *name, *args, *help;
    int (*run)(struct remote *r);
    uint64_t options;
    bool has_machine;
    unsigned values_max;
    const char *text;               /* more for its help */
} table[] = {
    {"ps", "", "List running machines", remote_ps, ALWAYS, false, 0,
        "Lists the machines that you have started with --name."},
    {"status", " MACHINE", "Show what a machine is and how it stands", remote_status, ALWAYS, true, 0,
        "Shows what the machine is made of, what executes it and for how long it has run."},
    {"pause", " MACHINE", "Stop its processors, and time for it", remote_pause, ALWAYS, true, 0,
        "Stops the machine's processors, and its time with them, until 'doppel resume'."},
    {"resume", " MACHINE", "Let a paused machine go on", remote_resume, ALWAYS, true, 0,
        "Lets a paused machine go on where it stood."},
    {"stop", " MACHINE", "Shut a machine down", remote_stop,
        ALWAYS | BIT(OPTION_TIMEOUT) | BIT(OPTION_HARD) | BIT(OPTION_BUTTON) | BIT(OPTION_NO_WAIT), true, 0,
        "Presses the machine's power button and waits until its guest has shut down; when it\n"
        "has not within the timeout, stops it hard. Says which of them happened."},
    {"stats", " MACHINE", "Show a machine's counters", remote_stats, ALWAYS, true, 0,
        "Shows what --stats would print at the end, as it is now."},
    {"engine", " MACHINE [ENGINE]", "Show or change what executes its guest", remote_engine, ALWAYS, true, 1,
        "Lets the running guest go on on another engine: kvm, bt or interp; without ENGINE, shows\n"
        "which it is. 'doppel run --engines' says what the machine may change to."},
    {"balloon", " MACHINE [SIZE]", "Show or change how much memory it gives back", remote_balloon, ALWAYS, true, 1,
        "Asks the guest to give back SIZE of its memory, as in 256M, or 0 for none; without SIZE,\n"
        "shows how much it has given. The machine needs 'doppel run --balloon on'."},
    {"link", " MACHINE STATE", "Plug its network cable in or out: up, down", remote_link, ALWAYS, true, 1,
        "Plugs the cable of the machine's network interface in (up) or out (down)."},
    {"resize", " MACHINE DISK [SIZE]", "Tell it that a disk has grown", remote_resize, ALWAYS, true, 2,
        "Tells the guest that DISK (its number from 0 on, its path, or its serial) has grown; with\n"
        "SIZE, as in 20G, grows it to that first."},
};
/* clang-format on */

const char *const remote_commands[] = {"ps",     "status",  "pause", "resume", "stop", "stats",
                                       "engine", "balloon", "link",  "resize", NULL};

static const struct remote_command *remote_find(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

bool remote_knows(const char *command)
{
    return remote_find(command) != NULL;
}

void remote_print_list(FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
        int used = fprintf(out, "  %s%s", table[i].name, table[i].args);
        fprintf(out, "%*s%s\n", MAX(31 - used, 1), "", table[i].help);
    }
}

static void remote_print_help(const struct remote_command *command)
{
    printf("Usage: doppel %s [options]%s\n\n%s\n", command->name, command->args, command->text);
    if (command->has_machine)
        printf("MACHINE is a name given with 'doppel run --name', or the path of a control socket\n"
               "(it has a '/' in it).\n");
    printf("\nOptions:\n");
    for (unsigned i = 0; i < OPTION_COUNT; i++) {
        if (!(command->options & BIT(i)))
            continue;
        int used =
            printf("  --%s%s%s", remote_options[i].name, remote_options[i].arg != NULL ? " " : "",
                   remote_options[i].arg != NULL ? remote_options[i].arg : "");
        printf("%*s%s\n", MAX(31 - used, 1), "", remote_options[i].help);
    }
    printf("\n"
           "Exit status:\n"
           "  0      done\n"
           "  1      wrong usage, or it could not be done; a message says why\n");
    if (command->has_machine)
        printf("  4      no such machine runs\n");
    if (command->options & BIT(OPTION_BUTTON))
        printf("  5      --button was given, and the guest has not shut down in time\n");
}

/* ---- the command line ---- */

static int remote_unknown_option(const struct remote *r, const char *arg, struct err *e)
{
    const char *names[OPTION_COUNT];
    unsigned count = 0;
    for (unsigned i = 0; i < OPTION_COUNT; i++)
        if (r->command->options & BIT(i))
            names[count++] = remote_options[i].name;
    const char *near = suggest_nearest(arg + strspn(arg, "-"), names, count);
    if (near != NULL)
        return err_set(e, 0, "unknown option '%s'; did you mean '--%s'?", arg, near);
    return err_set(e, 0, "unknown option '%s'; 'doppel %s --help' lists them all", arg,
                   r->command->name);
}

/* argv[*i] is an option, perhaps followed by its value. */
static int remote_parse_option(struct remote *r, int argc, char **argv, int *i, struct err *e)
{
    const char *arg = strcmp(argv[*i], "-h") == 0 ? "--help" : argv[*i];
    size_t len = strcspn(arg, "=");
    const char *value = arg[len] == '=' ? arg + len + 1 : NULL;
    unsigned found = OPTION_COUNT;
    for (unsigned n = 0; n < OPTION_COUNT; n++)
        if ((r->command->options & BIT(n)) && len == strlen(remote_options[n].name) + 2 &&
            strncmp(arg, "--", 2) == 0 && strncmp(arg + 2, remote_options[n].name, len - 2) == 0)
            found = n;
    if (found == OPTION_COUNT)
        return remote_unknown_option(r, arg, e);
    r->has[found] = true;
    if (remote_options[found].arg == NULL)
        return value == NULL ? 0 : err_set(e, 0, "--%s takes no value", remote_options[found].name);
    if (value == NULL && *i + 1 == argc)
        return err_set(e, 0, "--%s needs a value: --%s %s", remote_options[found].name,
                       remote_options[found].name, remote_options[found].arg);
    uint64_t number = 0;
    int rc = parse_u64(value != NULL ? value : argv[++*i], "--timeout", 0, REMOTE_STOP_SECONDS_MAX,
                       &number, e);
    r->timeout_s = (unsigned)number;
    return rc;
}

static int remote_parse(struct remote *r, int argc, char **argv, struct err *e)
{
    for (int i = 0; i < argc; i++) {
        int rc = 0;
        if (argv[i][0] == '-' && argv[i][1] != '\0')
            rc = remote_parse_option(r, argc, argv, &i, e);
        else if (r->command->has_machine && r->machine == NULL)
            r->machine = argv[i];
        else if (r->value_count < r->command->values_max)
            r->values[r->value_count++] = argv[i];
        else
            rc = err_set(e, 0, "unexpected argument '%s'; 'doppel %s --help' shows what it takes",
                         argv[i], r->command->name);
        if (rc != 0)
            return rc;
    }
    if (r->has[OPTION_HELP])
        return 0;
    if (r->command->has_machine && r->machine == NULL)
        return err_set(e, 0, "which machine? 'doppel %s%s'; 'doppel ps' lists them",
                       r->command->name, r->command->args);
    if (r->has[OPTION_HARD] + r->has[OPTION_BUTTON] > 1)
        return err_set(e, 0, "--hard and --button exclude each other");
    if (r->has[OPTION_TIMEOUT] && r->has[OPTION_HARD])
        return err_set(e, 0, "--hard does not wait: it takes no --timeout");
    return 0;
}

/* ---- helpers ---- */

static int remote_fail(const struct err *e)
{
    log_error("%s", e->msg);
    return EXIT_STATUS_ERROR;
}

static void remote_print_json(json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    putchar('\n');
}

/* Ask, and print the answer with --json. 0, or an exit status. */
static int remote_ask(struct remote *r, const char *method, const char *path, const char *body,
                      int timeout_ms, struct client_answer *answer)
{
    struct err e;
    if (client_call(&r->entry, method, path, body, timeout_ms, answer, &e) != 0) {
        /* It has ended since we looked. */
        if (!rundir_is_held(&r->entry) && (e.code == ECONNREFUSED || e.code == ENOENT)) {
            log_error("%s", e.msg);
            return REMOTE_STATUS_ABSENT;
        }
        return remote_fail(&e);
    }
    if (r->has[OPTION_JSON])
        remote_print_json(answer->json);
    return 0;
}

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text != NULL ? text : "-";
}

static double number_of(const json_t *json, const char *key)
{
    return json_number_value(json_object_get(json, key));
}

#define SPAN_TEXT 32
/* "3 min 5 s". */
static const char *span_format(double seconds, char buf[SPAN_TEXT])
{
    unsigned long s = seconds > 0 && seconds < 1e12 ? (unsigned long)seconds : 0;
    if (s < 60)
        snprintf(buf, SPAN_TEXT, "%.1f s", seconds);
    else if (s < 3600)
        snprintf(buf, SPAN_TEXT, "%lu min %lu s", s / 60, s % 60);
    else if (s < 86400)
        snprintf(buf, SPAN_TEXT, "%lu h %lu min", s / 3600, s / 60 % 60);
    else
        snprintf(buf, SPAN_TEXT, "%lu d %lu h", s / 86400, s / 3600 % 24);
    return buf;
}

static const char *size_of(const json_t *json, char buf[PARSE_SIZE_TEXT])
{
    return parse_format_size((uint64_t)json_integer_value(json_object_get(json, "memory_bytes")),
                             buf);
}

/* ---- commands ---- */

struct remote_list {
    json_t *machines;
};

static void remote_list_one(void *ctx, const struct rundir_entry *entry)
{
    struct remote_list *list = ctx;
    struct client_answer answer;
    struct err e;
    if (client_call(entry, "GET", "/v1/status", NULL, REMOTE_PS_TIMEOUT_MS, &answer, &e) != 0) {
        /* Ended meanwhile? Else it is stopped, or as busy as can be: say that it is there. */
        if (!rundir_is_held(entry))
            return;
        answer.json = json_pack("{s:s, s:s, s:i, s:s}", "name", entry->name, "socket",
                                entry->socket, "pid", (int)entry->pid, "state", "unreachable");
    }
    json_array_append_new(list->machines, answer.json);
}

static void remote_print_table(const json_t *machines)
{
    size_t i;
    json_t *m;
    printf("%-20s %8s  %-11s  %-6s  %4s  %6s  %12s  %s\n", "NAME", "PID", "STATE", "ENGINE", "CPUS",
           "MEMORY", "UPTIME", "KERNEL");
    json_array_foreach(machines, i, m)
    {
        char size[PARSE_SIZE_TEXT], span[SPAN_TEXT];
        if (json_object_get(m, "engine") == NULL) {
            printf("%-20s %8d  %-11s\n", text_of(m, "name"), (int)number_of(m, "pid"),
                   text_of(m, "state"));
            continue;
        }
        printf("%-20s %8d  %-11s  %-6s  %4d  %6s  %12s  %s\n", text_of(m, "name"),
               (int)number_of(m, "pid"),
               json_is_true(json_object_get(m, "stopping")) ? "stopping" : text_of(m, "state"),
               text_of(m, "engine"), (int)number_of(m, "cpus"), size_of(m, size),
               span_format(number_of(m, "uptime_s"), span), text_of(m, "kernel"));
    }
}

static int remote_ps(struct remote *r)
{
    struct remote_list list = {.machines = json_array()};
    struct err e;
    int status = EXIT_STATUS_OK;
    if (rundir_list(remote_list_one, &list, &e) != 0)
        status = remote_fail(&e);
    else if (r->has[OPTION_JSON])
        remote_print_json(list.machines);
    else if (json_array_size(list.machines) > 0)
        remote_print_table(list.machines);
    else
        printf("No machine runs that was started with --name.\n");
    json_decref(list.machines);
    return status;
}

static void remote_print_status(const json_t *m)
{
    char size[PARSE_SIZE_TEXT], up[SPAN_TEXT], guest[SPAN_TEXT];
    printf("name        %s\n", text_of(m, "name"));
    printf("state       %s%s\n", text_of(m, "state"),
           json_is_true(json_object_get(m, "stopping")) ? ", stopping" : "");
    printf("process     %d\n", (int)number_of(m, "pid"));
    printf("socket      %s\n", text_of(m, "socket"));
    printf("engine      %s\n", text_of(m, "engine"));
    printf("CPUs        %d, %s\n", (int)number_of(m, "cpus"), text_of(m, "cpu_model"));
    printf("memory      %s\n", size_of(m, size));
    printf("firmware    %s\n", text_of(m, "firmware"));
    printf("kernel      %s\n", text_of(m, "kernel"));
    printf("initrd      %s\n", text_of(m, "initrd"));
    printf("cmdline     %s\n", text_of(m, "cmdline"));
    printf("up for      %s\n", span_format(number_of(m, "uptime_s"), up));
    printf("guest time  %s\n", span_format(number_of(m, "guest_time_s"), guest));
}

static int remote_status(struct remote *r)
{
    struct client_answer answer;
    int status = remote_ask(r, "GET", "/v1/status", NULL, REMOTE_TIMEOUT_MS, &answer);
    if (status == 0 && !r->has[OPTION_JSON])
        remote_print_status(answer.json);
    json_decref(answer.json);
    return status;
}

static int remote_change(struct remote *r, const char *path)
{
    struct client_answer answer;
    int status = remote_ask(r, "POST", path, NULL, REMOTE_TIMEOUT_MS, &answer);
    if (status == 0 && !r->has[OPTION_JSON])
        printf("%s: %s\n", r->machine, text_of(answer.json, "state"));
    json_decref(answer.json);
    return status;
}

static int remote_pause(struct remote *r)
{
    return remote_change(r, "/v1/pause");
}

static int remote_resume(struct remote *r)
{
    return remote_change(r, "/v1/resume");
}

/* Its name can be used again once its process has let go of it. */
static void remote_await_end(const struct remote *r)
{
    struct timespec wait = {.tv_nsec = 10000000};
    for (unsigned i = 0; i < REMOTE_END_MS / 10 && rundir_is_held(&r->entry); i++)
        nanosleep(&wait, NULL);
    if (rundir_is_held(&r->entry))
        log_warn("the machine has stopped, but process %d still waits for somebody to read its "
                 "output",
                 (int)r->entry.pid);
}

static void remote_print_result(const struct remote *r, const char *result)
{
    static const struct {
        const char *result, *text;
    } texts[] = {
        {"stopping", "stopping"},
        {"powered_off", "powered off"},
        {"hard", "stopped hard"},
        {"still_running", "still running: the guest has not reacted to the power button in time"},
        {"reset", "ended: the guest reset the machine"},
        {"died", "ended: the guest died"},
    };
    const char *text = "ended";
    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++)
        if (strcmp(texts[i].result, result) == 0)
            text = texts[i].text;
    if (strcmp(result, "hard") == 0 && !r->has[OPTION_HARD])
        printf("%s: stopped hard: the guest had not shut down within %u s\n", r->machine,
               r->timeout_s);
    else
        printf("%s: %s\n", r->machine, text);
}

static int remote_stop(struct remote *r)
{
    struct client_answer answer;
    char body[96];
    snprintf(body, sizeof(body), "{\"mode\":\"%s\",\"timeout_s\":%u,\"wait\":%s}",
             r->has[OPTION_HARD]     ? "hard"
             : r->has[OPTION_BUTTON] ? "button"
                                     : "auto",
             r->timeout_s, r->has[OPTION_NO_WAIT] ? "false" : "true");
    int timeout_ms = (int)r->timeout_s * 1000 + REMOTE_TIMEOUT_MS;
    int status = remote_ask(r, "POST", "/v1/stop", body, timeout_ms, &answer);
    if (status == 0) {
        const char *result = text_of(answer.json, "result");
        bool is_still_running = strcmp(result, "still_running") == 0;
        if (!is_still_running && !r->has[OPTION_NO_WAIT])
            remote_await_end(r);
        if (!r->has[OPTION_JSON])
            remote_print_result(r, result);
        if (is_still_running)
            status = REMOTE_STATUS_STILL_RUNNING;
    }
    json_decref(answer.json);
    return status;
}

static void remote_print_group(const json_t *group)
{
    json_t *cpu = json_object_get(group, "cpu"), *value;
    const char *key;
    if (json_is_integer(cpu))
        printf("CPU %d, ", (int)json_integer_value(cpu));
    printf("%s", text_of(group, "name"));
    if (json_is_string(json_object_get(group, "engine")))
        printf(" (%s)", text_of(group, "engine"));
    printf("\n");
    json_object_foreach(json_object_get(group, "counters"), key, value)
    {
        if (json_is_real(value))
            printf("  %-40s %18.3f\n", key, json_real_value(value));
        else if (json_integer_value(value) != 0)
            printf("  %-40s %18" JSON_INTEGER_FORMAT "\n", key, json_integer_value(value));
    }
}

static int remote_stats(struct remote *r)
{
    struct client_answer answer;
    size_t i;
    json_t *group;
    int status = remote_ask(r, "GET", "/v1/stats", NULL, REMOTE_TIMEOUT_MS, &answer);
    if (status == 0 && !r->has[OPTION_JSON]) {
        printf("engine %s\n", text_of(answer.json, "engine"));
        json_array_foreach(json_object_get(answer.json, "groups"), i, group)
            remote_print_group(group);
    }
    json_decref(answer.json);
    return status;
}

static int remote_show_engine(struct remote *r)
{
    struct client_answer answer;
    struct err e;
    if (client_call(&r->entry, "GET", "/v1/status", NULL, REMOTE_TIMEOUT_MS, &answer, &e) != 0)
        return remote_fail(&e);
    if (r->has[OPTION_JSON]) {
        json_t *json = json_pack("{s:s}", "engine", text_of(answer.json, "engine"));
        remote_print_json(json);
        json_decref(json);
    } else {
        printf("%s\n", text_of(answer.json, "engine"));
    }
    json_decref(answer.json);
    return EXIT_STATUS_OK;
}

static int remote_engine(struct remote *r)
{
    static const char *const engines[] = {"kvm", "bt", "interp"};
    struct client_answer answer;
    char body[64];
    bool is_known = false;
    const char *engine = r->values[0];
    if (engine == NULL)
        return remote_show_engine(r);
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++)
        is_known |= strcmp(engines[i], engine) == 0;
    if (!is_known) {
        log_error("'%s' is no engine that a machine can change to; they are kvm, bt and interp",
                  engine);
        return EXIT_STATUS_ERROR;
    }
    snprintf(body, sizeof(body), "{\"engine\":\"%s\"}", engine);
    int status = remote_ask(r, "PUT", "/v1/engine", body, REMOTE_TIMEOUT_MS, &answer);
    if (status == 0 && !r->has[OPTION_JSON])
        printf("%s: %s -> %s, the guest stood still for %.3f ms\n", r->machine,
               text_of(answer.json, "from"), text_of(answer.json, "to"),
               number_of(answer.json, "stopped_ms"));
    json_decref(answer.json);
    return status;
}

static void remote_print_balloon(const struct remote *r, const json_t *balloon)
{
    char actual[PARSE_SIZE_TEXT], target[PARSE_SIZE_TEXT];
    if (!json_is_object(balloon)) {
        printf("%s: no balloon\n", r->machine);
        return;
    }
    printf("%s: %s of %s given back%s\n", r->machine,
           parse_format_size((uint64_t)number_of(balloon, "actual_bytes"), actual),
           parse_format_size((uint64_t)number_of(balloon, "target_bytes"), target),
           json_is_true(json_object_get(balloon, "driver")) ? ""
                                                            : " (the guest has no driver for it)");
}

static int remote_balloon(struct remote *r)
{
    struct client_answer answer;
    struct err e;
    char body[64];
    uint64_t size;
    if (r->values[0] == NULL) {
        if (client_call(&r->entry, "GET", "/v1/status", NULL, REMOTE_TIMEOUT_MS, &answer, &e) != 0)
            return remote_fail(&e);
        json_t *balloon = json_object_get(answer.json, "balloon");
        if (r->has[OPTION_JSON] && json_is_object(balloon))
            remote_print_json(balloon);
        else if (r->has[OPTION_JSON])
            printf("null\n");
        else
            remote_print_balloon(r, balloon);
        json_decref(answer.json);
        return EXIT_STATUS_OK;
    }
    if (parse_size(r->values[0], "the size of the balloon", &size, &e) != 0)
        return remote_fail(&e);
    snprintf(body, sizeof(body), "{\"size_bytes\":%llu}",
             (unsigned long long)MIN(size, (uint64_t)INT64_MAX));
    int status = remote_ask(r, "PUT", "/v1/balloon", body, REMOTE_TIMEOUT_MS, &answer);
    if (status == 0 && !r->has[OPTION_JSON])
        remote_print_balloon(r, answer.json);
    json_decref(answer.json);
    return status;
}

static int remote_link(struct remote *r)
{
    struct client_answer answer;
    char body[64];
    bool is_up = r->values[0] != NULL && strcmp(r->values[0], "up") == 0;
    if (!is_up && (r->values[0] == NULL || strcmp(r->values[0], "down") != 0)) {
        log_error("'%s' is no state of a link; they are up and down",
                  r->values[0] != NULL ? r->values[0] : "");
        return EXIT_STATUS_ERROR;
    }
    snprintf(body, sizeof(body), "{\"state\":\"%s\"}", is_up ? "up" : "down");
    int status = remote_ask(r, "PUT", "/v1/link", body, REMOTE_TIMEOUT_MS, &answer);
    if (status == 0 && !r->has[OPTION_JSON])
        printf("%s: %s\n", r->machine, text_of(answer.json, "state"));
    json_decref(answer.json);
    return status;
}

static int remote_resize(struct remote *r)
{
    struct client_answer answer;
    char size_text[PARSE_SIZE_TEXT];
    struct err e;
    uint64_t size = 0;
    if (r->values[0] == NULL) {
        log_error("which disk? 'doppel resize%s'", r->command->args);
        return EXIT_STATUS_ERROR;
    }
    if (r->values[1] != NULL && parse_size(r->values[1], "the size of the disk", &size, &e) != 0)
        return remote_fail(&e);
    json_t *request = json_pack("{s:s, s:I}", "disk", r->values[0], "size_bytes",
                                (json_int_t)MIN(size, (uint64_t)INT64_MAX));
    char *body = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (body == NULL) {
        log_error("'%s' is no name of a disk", r->values[0]);
        return EXIT_STATUS_ERROR;
    }
    int status = remote_ask(r, "POST", "/v1/resize", body, REMOTE_TIMEOUT_MS, &answer);
    free(body);
    if (status == 0 && !r->has[OPTION_JSON])
        printf("%s: %s is %s large\n", r->machine, text_of(answer.json, "disk"),
               parse_format_size((uint64_t)number_of(answer.json, "size_bytes"), size_text));
    json_decref(answer.json);
    return status;
}

int remote_run(const char *name, int argc, char **argv)
{
    struct remote r = {.command = remote_find(name), .timeout_s = 60};
    struct err e;
    int status, rc = 0;
    if (remote_parse(&r, argc, argv, &e) != 0)
        return remote_fail(&e);
    if (r.has[OPTION_HELP]) {
        remote_print_help(r.command);
        status = EXIT_STATUS_OK;
    } else if (r.machine != NULL && (rc = rundir_find(r.machine, &r.entry, &e)) != 0) {
        log_error("%s", e.msg);
        status = rc == -ESRCH ? REMOTE_STATUS_ABSENT : EXIT_STATUS_ERROR;
    } else {
        status = r.command->run(&r);
    }
    return output_finish(status);
}
