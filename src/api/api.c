/*
 * api.c - the control socket: what a client may ask of a running machine
 *
 * Routes and the members of their requests are one table, which GET /v1 shows and a test compares
 * with docs/api/openapi.yaml. A request that waits for the machine's end holds a connection and
 * nothing else.
 */
#include "api/api.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/json.h"
#include "api/server.h"
#include "base/bits.h"
#include "base/log.h"
#include "os/vclock.h"
#include "vm/vm.h"

#define API_STOP_TIMEOUT_S 60
#define API_QUOTED_MAX 64

struct api {
    struct api_config config;
    struct server *server;
    struct vclock *clock; /* host time */
    struct vtimer unplug; /* the hard stop, when the guest does not heed the button */
    uint64_t unplug_ns;   /* its deadline; 0: none */
    bool is_stopping;     /* somebody asked for it */
    bool is_unplugged;    /* the end is ours, not the guest's */
};

struct api_call {
    struct api *api;
    struct server_conn *conn;
    union json_value values[JSON_FIELDS_MAX];
};

/* ---- answers ---- */

/* Takes the reference. */
static void reply_json(struct server_conn *conn, unsigned status, const char *fields, json_t *json)
{
    char *text = json != NULL ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(json);
    if (text == NULL) {
        server_reply(conn, 500, "",
                     "{\"error\":{\"code\":\"internal_server_error\","
                     "\"message\":\"doppel is out of memory\"}}");
        return;
    }
    server_reply(conn, status, fields, text);
    free(text);
}

/* "method_not_allowed" for 405. */
static void error_code(unsigned status, char *buf, size_t size)
{
    snprintf(buf, size, "%s", http_reason(status));
    for (char *c = buf; *c != '\0'; c++)
        *c = *c == ' ' ? '_' : (char)(*c | 0x20);
}

static void reply_error(struct server_conn *conn, unsigned status, const char *fields,
                        const char *message)
{
    char code[64];
    error_code(status, code, sizeof(code));
    reply_json(conn, status, fields,
               json_pack("{s:{s:s, s:o}}", "error", "code", code, "message", json_text(message)));
}

static json_t *api_balloon(struct api *api)
{
    struct vm_balloon_status b;
    if (!vm_get_balloon(api->config.vm, &b))
        return json_null();
    return json_pack("{s:b, s:I, s:I}", "driver", b.has_driver, "target_bytes",
                     (json_int_t)b.target_bytes, "actual_bytes", (json_int_t)b.actual_bytes);
}

static json_t *api_status(struct api *api)
{
    struct vm_status s;
    vm_get_status(api->config.vm, &s);
    return json_pack(
        "{s:s, s:i, s:o, s:o, s:s, s:b, s:s, s:i, s:I, s:o, s:o, s:o, s:o, s:o, s:f, s:f, s:o}",
        "version", DOPPEL_VERSION, "pid", (int)getpid(), "name", json_text(api->config.name),
        "socket", json_text(api->config.socket), "state", s.is_paused ? "paused" : "running",
        "stopping", api->is_stopping, "engine", s.engine, "cpus", (int)s.cpu_count, "memory_bytes",
        (json_int_t)s.memory_bytes, "cpu_model", json_text(s.cpu_model), "firmware",
        json_text(s.firmware), "kernel", json_text(s.kernel_path), "initrd",
        json_text(s.initrd_path), "cmdline", json_text(s.cmdline), "uptime_s",
        (double)vclock_now_ns(api->clock) / 1e9, "guest_time_s", (double)s.guest_ns / 1e9,
        "balloon", api_balloon(api));
}

/* ---- what can be asked ---- */

static void api_index(struct api_call *call);

static void api_get_status(struct api_call *call)
{
    reply_json(call->conn, 200, "", api_status(call->api));
}

static void api_get_stats(struct api_call *call)
{
    struct vm *vm = call->api->config.vm;
    struct json_stats stats;
    json_stats_init(&stats);
    vm_report_stats(vm, &stats.sink);
    reply_json(call->conn, 200, "",
               json_pack("{s:s, s:o}", "engine", vm_engine_name(vm), "groups", stats.groups));
}

static void api_pause(struct api_call *call)
{
    struct err e;
    if (vm_pause(call->api->config.vm, &e) != 0)
        reply_error(call->conn, 409, "", e.msg);
    else
        api_get_status(call);
}

static void api_resume(struct api_call *call)
{
    struct err e;
    if (vm_resume(call->api->config.vm, &e) != 0)
        reply_error(call->conn, 409, "", e.msg);
    else
        api_get_status(call);
}

static void api_unplug(struct api *api)
{
    log_info("stopped through the control socket");
    api->is_unplugged = true;
    vm_request_stop(api->config.vm);
}

static void api_on_unplug(void *ctx)
{
    api_unplug(ctx);
}

/* The earliest of several requests counts. */
static void api_schedule_unplug(struct api *api, double seconds)
{
    uint64_t deadline_ns = vclock_now_ns(api->clock) + (uint64_t)(seconds * 1e9);
    if (api->unplug_ns != 0 && api->unplug_ns <= deadline_ns)
        return;
    api->unplug_ns = MAX(deadline_ns, 1);
    vtimer_arm(&api->unplug, api->unplug_ns);
}

enum { STOP_MODE, STOP_TIMEOUT, STOP_WAIT };
static const char *const stop_modes[] = {"auto", "button", "hard", NULL};

/* A paused machine has to run to shut itself down. */
static int api_press(struct api *api, struct err *e)
{
    int rc = vm_resume(api->config.vm, e);
    if (rc == 0)
        vm_press_power_button(api->config.vm);
    return rc;
}

static void api_stop(struct api_call *call)
{
    struct api *api = call->api;
    const char *mode = call->values[STOP_MODE].text;
    double timeout_s = call->values[STOP_TIMEOUT].seconds;
    bool is_button = strcmp(mode, "button") == 0;
    struct err e;
    if (strcmp(mode, "hard") == 0) {
        api_unplug(api);
    } else if (api_press(api, &e) != 0) {
        reply_error(call->conn, 409, "", e.msg);
        return;
    } else if (!is_button) {
        api_schedule_unplug(api, timeout_s);
    }
    api->is_stopping = true;
    if (!call->values[STOP_WAIT].is_true)
        reply_json(call->conn, 202, "", json_pack("{s:s}", "result", "stopping"));
    else
        server_hold(call->conn, is_button ? MAX((uint64_t)(timeout_s * 1e9), 1) : 0);
}

static const char *const engine_names[] = {"kvm", "bt", "interp", NULL};

static void api_switch_engine(struct api_call *call)
{
    struct vm_switch done;
    struct err e;
    if (vm_switch_engine(call->api->config.vm, call->values[0].text, &done, &e) != 0) {
        reply_error(call->conn, 409, "", e.msg);
        return;
    }
    reply_json(call->conn, 200, "",
               json_pack("{s:s, s:s, s:f, s:f}", "from", done.from, "to", done.to, "prepare_ms",
                         (double)done.prepare_ns / 1e6, "stopped_ms",
                         (double)done.stopped_ns / 1e6));
}

static void api_set_balloon(struct api_call *call)
{
    struct err e;
    if (vm_set_balloon(call->api->config.vm, call->values[0].bytes, &e) != 0)
        reply_error(call->conn, 409, "", e.msg);
    else
        reply_json(call->conn, 200, "", api_balloon(call->api));
}

static const char *const link_states[] = {"up", "down", NULL};

static void api_set_link(struct api_call *call)
{
    bool is_up = call->values[0].text == link_states[0];
    struct err e;
    if (vm_set_link(call->api->config.vm, is_up, &e) != 0)
        reply_error(call->conn, 409, "", e.msg);
    else
        reply_json(call->conn, 200, "", json_pack("{s:s}", "state", call->values[0].text));
}

enum { RESIZE_DISK, RESIZE_SIZE };

static void api_resize(struct api_call *call)
{
    uint64_t size = call->values[RESIZE_SIZE].bytes;
    struct err e;
    if (vm_resize_disk(call->api->config.vm, call->values[RESIZE_DISK].name, &size, &e) != 0)
        reply_error(call->conn, 409, "", e.msg);
    else
        reply_json(call->conn, 200, "",
                   json_pack("{s:o, s:I}", "disk", json_text(call->values[RESIZE_DISK].name),
                             "size_bytes", (json_int_t)size));
}

/* ---- routes ---- */

static const struct json_field engine_fields[] = {{"engine", JSON_KIND_TEXT, engine_names, true}};

static const struct json_field balloon_fields[] = {{"size_bytes", JSON_KIND_BYTES, NULL, true}};
static const struct json_field link_fields[] = {{"state", JSON_KIND_TEXT, link_states, true}};
static const struct json_field resize_fields[] = {
    [RESIZE_DISK] = {"disk", JSON_KIND_NAME, NULL, true},
    [RESIZE_SIZE] = {"size_bytes", JSON_KIND_BYTES, NULL, false},
};

static const struct json_field stop_fields[] = {
    [STOP_MODE] = {"mode", JSON_KIND_TEXT, stop_modes, false},
    [STOP_TIMEOUT] = {"timeout_s", JSON_KIND_SECONDS, NULL, false},
    [STOP_WAIT] = {"wait", JSON_KIND_BOOL, NULL, false},
};

static const struct api_route {
    const char *method, *path;
    void (*call)(struct api_call *call);
    const struct json_field *fields;
    unsigned field_count;
} routes[] = {
    {"GET", "/v1", api_index, NULL, 0},
    {"GET", "/v1/status", api_get_status, NULL, 0},
    {"GET", "/v1/stats", api_get_stats, NULL, 0},
    {"POST", "/v1/pause", api_pause, NULL, 0},
    {"POST", "/v1/resume", api_resume, NULL, 0},
    {"PUT", "/v1/engine", api_switch_engine, engine_fields, ARRAY_SIZE(engine_fields)},
    {"PUT", "/v1/balloon", api_set_balloon, balloon_fields, ARRAY_SIZE(balloon_fields)},
    {"PUT", "/v1/link", api_set_link, link_fields, ARRAY_SIZE(link_fields)},
    {"POST", "/v1/resize", api_resize, resize_fields, ARRAY_SIZE(resize_fields)},
    {"POST", "/v1/stop", api_stop, stop_fields, ARRAY_SIZE(stop_fields)},
};

static void api_index(struct api_call *call)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < ARRAY_SIZE(routes); i++) {
        json_t *fields = json_array();
        for (unsigned n = 0; n < routes[i].field_count; n++)
            json_array_append_new(fields, json_string(routes[i].fields[n].name));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "method", routes[i].method, "path",
                                              routes[i].path, "fields", fields));
    }
    reply_json(call->conn, 200, "",
               json_pack("{s:s, s:o}", "version", DOPPEL_VERSION, "routes", list));
}

/* "http://any/v1/status" is "/v1/status" (RFC 9112, 3.2.2). */
static struct http_span api_path(struct http_span target)
{
    static const char scheme[] = "http://";
    size_t len = sizeof(scheme) - 1;
    if (target.len < len || memcmp(target.at, scheme, len) != 0)
        return target;
    const char *slash = memchr(target.at + len, '/', target.len - len);
    if (slash == NULL)
        return (struct http_span){"/", 1};
    return (struct http_span){slash, target.len - (size_t)(slash - target.at)};
}

static bool api_is_method(struct http_span method)
{
    static const char *const known[] = {"GET",   "HEAD",    "POST",  "PUT",    "DELETE",
                                        "PATCH", "OPTIONS", "TRACE", "CONNECT"};
    for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
        if (http_span_is(method, known[i]))
            return true;
    return false;
}

static bool api_does(const struct api_route *route, struct http_span method)
{
    return http_span_is(method, route->method) ||
           (http_span_is(method, "HEAD") && strcmp(route->method, "GET") == 0);
}

/* No route takes this method at this path. */
static void api_refuse_route(struct server_conn *conn, const struct http_head *head,
                             struct http_span path)
{
    char message[320], allow[64] = "";
    int method_len = (int)MIN(head->method.len, API_QUOTED_MAX);
    int path_len = (int)MIN(path.len, API_QUOTED_MAX);
    for (unsigned i = 0; i < ARRAY_SIZE(routes); i++)
        if (http_span_is(path, routes[i].path))
            snprintf(allow, sizeof(allow), "Allow: %s%s\r\n", routes[i].method,
                     strcmp(routes[i].method, "GET") == 0 ? ", HEAD" : "");
    if (!api_is_method(head->method)) {
        snprintf(message, sizeof(message),
                 "'%.*s' is no method of HTTP; GET /v1 lists what can be asked", method_len,
                 head->method.at);
        reply_error(conn, 501, "", message);
    } else if (allow[0] != '\0') {
        snprintf(message, sizeof(message), "'%.*s' cannot be done with '%.*s'; it takes %.*s",
                 method_len, head->method.at, path_len, path.at, (int)strcspn(allow + 7, "\r"),
                 allow + 7);
        reply_error(conn, 405, allow, message);
    } else {
        snprintf(message, sizeof(message),
                 "there is nothing at '%.*s'; GET /v1 lists what there is", path_len, path.at);
        reply_error(conn, 404, "", message);
    }
}

static void api_handle(void *ctx, struct server_conn *conn, const struct http_head *head,
                       const char *body)
{
    struct api_call call = {
        .api = ctx,
        .conn = conn,
    };
    struct http_span path = api_path(head->target);
    struct err e;
    for (unsigned i = 0; i < ARRAY_SIZE(routes); i++) {
        if (!http_span_is(path, routes[i].path) || !api_does(&routes[i], head->method))
            continue;
        if (routes[i].fields == stop_fields) {
            call.values[STOP_MODE].text = stop_modes[0];
            call.values[STOP_TIMEOUT].seconds = API_STOP_TIMEOUT_S;
            call.values[STOP_WAIT].is_true = true;
        }
        if (json_take(body, (size_t)head->length, routes[i].fields, routes[i].field_count,
                      call.values, &e) != 0) {
            err_prefix(&e, "%s %s", routes[i].method, routes[i].path);
            reply_error(conn, 400, "", e.msg);
            return;
        }
        routes[i].call(&call);
        return;
    }
    api_refuse_route(conn, head, path);
}

static void api_refuse(void *ctx, struct server_conn *conn, unsigned status, const char *why)
{
    reply_error(conn, status, "", why);
}

/* The guest has not powered off after the button, and nobody wants more than that. */
static void api_expire(void *ctx, struct server_conn *conn)
{
    reply_json(conn, 200, "", json_pack("{s:s}", "result", "still_running"));
}

static const struct server_ops api_server_ops = {
    .handle = api_handle,
    .refuse = api_refuse,
    .expire = api_expire,
};

/* ---- life ---- */

int api_create(const struct api_config *config, struct api **out, struct err *e)
{
    struct api *api = calloc(1, sizeof(*api));
    struct server_config server_config = {
        .loop = config->loop,
        .listen_fd = config->listen_fd,
        .ops = &api_server_ops,
        .ctx = api,
    };
    if (api == NULL)
        return err_set(e, ENOMEM, "serve the control socket");
    api->config = *config;
    int rc = vclock_create(config->loop, &api->clock, e);
    if (rc == 0) {
        vtimer_init(&api->unplug, api->clock, api_on_unplug, api);
        rc = server_create(&server_config, &api->server, e);
    }
    if (rc != 0) {
        api_destroy(api);
        return rc;
    }
    *out = api;
    return 0;
}

static const char *end_result(const struct api *api, const struct vm_end *end)
{
    switch (end->cause) {
    case VM_END_POWER_OFF:
        return "powered_off";
    case VM_END_RESET:
        return "reset";
    case VM_END_DIED:
        return "died";
    case VM_END_DEBUG_EXIT:
        return "debug_exit";
    case VM_END_STOPPED:
        return api->is_unplugged ? "hard" : "ended";
    case VM_END_ERROR:
        break;
    }
    return "error";
}

void api_finish(struct api *api, const struct vm_end *end)
{
    char body[64];
    server_close_listener(api->server);
    snprintf(body, sizeof(body), "{\"result\":\"%s\"}", end_result(api, end));
    server_reply_all(api->server, 200, body);
}

void api_destroy(struct api *api)
{
    if (api == NULL)
        return;
    server_destroy(api->server);
    if (api->clock != NULL)
        vtimer_cancel(&api->unplug);
    vclock_destroy(api->clock);
    free(api);
}
