/*
 * image.c - the command line of `doppel image`: one table of commands, one of options
 */
#include "cli/image.h"

#include <string.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/parse.h"
#include "cli/disk.h"
#include "cli/output.h"
#include "cli/props.h"
#include "cli/run.h"
#include "cli/suggest.h"

enum image_option {
    OPTION_FORMAT,
    OPTION_SOURCE_FORMAT,
    OPTION_CLUSTER_SIZE,
    OPTION_BACKING,
    OPTION_BACKING_FORMAT,
    OPTION_COMPRESSION,
    OPTION_COMPRESS,
    OPTION_PREALLOCATION,
    OPTION_LAZY_REFCOUNTS,
    OPTION_COMPAT,
    OPTION_FORCE,
    OPTION_SHRINK,
    OPTION_REPAIR,
    OPTION_JSON,
    OPTION_HELP,
    OPTION_COUNT
};

/* clang-format off */
static const struct {
    const char *name, *arg, *help;
} image_options[OPTION_COUNT] = {
    [OPTION_FORMAT] = {"format", "FORMAT",
        "raw or qcow2. Of a new image: the default is qcow2, or for\n"
        "convert what TARGET's name ends in; else it is found out"},
    [OPTION_SOURCE_FORMAT] = {"source-format", "FORMAT",
        "Format of SOURCE, if it is not to be found out"},
    [OPTION_CLUSTER_SIZE] = {"cluster-size", "SIZE",
        "Unit in which room is given, 512 to 2M (default 64K)"},
    [OPTION_BACKING] = {"backing", "FILE",
        "The image starts as what FILE holds, which must then stay as\n"
        "it is; a relative name is meant from the image's folder"},
    [OPTION_BACKING_FORMAT] = {"backing-format", "FORMAT",
        "Format of the backing file, if it is not to be found out"},
    [OPTION_COMPRESSION] = {"compression", "METHOD",
        "How clusters are compressed: zlib (the default) or zstd"},
    [OPTION_COMPRESS] = {"compress", NULL,
        "Compress what is written to TARGET (qcow2)"},
    [OPTION_PREALLOCATION] = {"preallocation", "MODE",
        "off (the default), metadata (all tables of a qcow2 image) or\n"
        "falloc (and room on the host's disk)"},
    [OPTION_LAZY_REFCOUNTS] = {"lazy-refcounts", NULL,
        "Allow programs to write refcounts late"},
    [OPTION_COMPAT] = {"compat", "VERSION",
        "Version of the qcow2 format: 3 (the default) or 2"},
    [OPTION_FORCE] = {"force", NULL,
        "Replace the file if there is one"},
    [OPTION_SHRINK] = {"shrink", NULL,
        "Allow the end of the disk to be lost"},
    [OPTION_REPAIR] = {"repair", "WHICH",
        "leaks (room that nothing uses) or all"},
    [OPTION_JSON] = {"json", NULL, "Print JSON"},
    [OPTION_HELP] = {"help", NULL, "Print this text"},
};

#define OPTIONS_NEW (BIT(OPTION_FORMAT) | BIT(OPTION_CLUSTER_SIZE) | BIT(OPTION_COMPRESSION) | \
    BIT(OPTION_PREALLOCATION) | BIT(OPTION_LAZY_REFCOUNTS) | BIT(OPTION_COMPAT) | BIT(OPTION_FORCE))

static const struct image_command {
    const char *name, *args, *help;
    int (*run)(const struct image_request *r);
    uint64_t options;
    unsigned args_min, args_max;
    const char *text; /* more for its help */
} table[] = {
    {"create", " FILE [SIZE]", "Make an empty image", image_create,
        OPTIONS_NEW | BIT(OPTION_BACKING) | BIT(OPTION_BACKING_FORMAT), 1, 2,
        "Makes an image of SIZE, as in 20G, or as large as its backing file."},
    {"info", " FILE", "Show what an image is", image_info,
        BIT(OPTION_FORMAT) | BIT(OPTION_JSON), 1, 1,
        "Shows format, sizes and properties of an image. It may be in use."},
    {"resize", " FILE SIZE", "Make a disk larger or smaller", image_resize,
        BIT(OPTION_FORMAT) | BIT(OPTION_SHRINK), 2, 2,
        "Gives the disk a new size; +SIZE adds to it. Partitions and file systems are the\n"
        "guest's business."},
    {"check", " FILE", "Look for damage, and repair it", image_check,
        BIT(OPTION_FORMAT) | BIT(OPTION_REPAIR) | BIT(OPTION_JSON), 1, 1,
        "Compares what a qcow2 image refers to with what it counts as in use."},
    {"convert", " SOURCE TARGET", "Copy a disk into another format", image_convert,
        OPTIONS_NEW | BIT(OPTION_SOURCE_FORMAT) | BIT(OPTION_COMPRESS), 2, 2,
        "Copies the disk, with what its backing files hold, into a new image. Zeroes take no room."},
    {"commit", " FILE", "Move an overlay's contents into its backing file", image_commit,
        BIT(OPTION_FORMAT), 1, 1,
        "Writes what an image has on top of its backing file into that, and empties it."},
};
/* clang-format on */

void image_print_list(FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
        int used = fprintf(out, "  image %s%s", table[i].name, table[i].args);
        fprintf(out, "%*s%s\n", MAX(31 - used, 1), "", table[i].help);
    }
}

static void print_options(uint64_t which)
{
    printf("\nOptions:\n");
    for (unsigned i = 0; i < OPTION_COUNT; i++)
        if (which & BIT(i))
            output_option(stdout, image_options[i].name, image_options[i].arg,
                          image_options[i].help);
}

static void print_help(const struct image_command *command)
{
    if (command == NULL) {
        printf("Usage: doppel image COMMAND [options] FILE...\n\n"
               "Disk images, raw and qcow2:\n");
        for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
            printf("  %s%s%*s%s\n", table[i].name, table[i].args,
                   MAX(29 - (int)(strlen(table[i].name) + strlen(table[i].args)), 1), "",
                   table[i].help);
        print_options(BIT(OPTION_COUNT) - 1);
    } else {
        printf("Usage: doppel image %s [options]%s\n\n%s\n", command->name, command->args,
               command->text);
        print_options(command->options | BIT(OPTION_HELP));
    }
    printf("\nExit status:\n"
           "  0      done\n"
           "  1      wrong usage, or it could not be done; a message says why\n");
    if (command == NULL || command->run == image_check)
        printf("  2      check: there are errors that are not repaired\n"
               "  3      check: there are no errors, but leaks that are not repaired\n");
}

/* ---- parsing ---- */

static int take_cluster_size(const char *value, struct image_request *r, struct err *e)
{
    uint64_t size = 0;
    int rc = parse_size(value, "--cluster-size", &size, e);

    if (rc == 0 && (size > QCOW2_CLUSTER_MAX || size < QCOW2_CLUSTER_MIN || !is_pow2(size)))
        rc = err_set(e, 0, "--cluster-size: %s is not a power of 2 from 512 to 2M", value);
    r->create.cluster_size = (uint32_t)size;
    return rc;
}

static int take_option(enum image_option id, const char *value, struct image_request *r,
                       struct err *e)
{
    static const char *const methods[] = {[QCOW2_ZLIB] = "zlib", [QCOW2_ZSTD] = "zstd"};
    static const char *const modes[] = {[QCOW2_PREALLOCATE_OFF] = "off",
                                        [QCOW2_PREALLOCATE_METADATA] = "metadata",
                                        [QCOW2_PREALLOCATE_FALLOC] = "falloc"};
    static const char *const versions[] = {"2", "3"};
    static const char *const repairs[] = {"leaks", "all"};
    char name[32];
    unsigned i = 0;
    int rc = 0;

    snprintf(name, sizeof(name), "--%s", image_options[id].name);
    switch (id) {
    case OPTION_FORMAT:
        return disk_parse_format(name, value, &r->format, e);
    case OPTION_SOURCE_FORMAT:
        return disk_parse_format(name, value, &r->source_format, e);
    case OPTION_BACKING_FORMAT:
        return disk_parse_format(name, value, &r->backing_format, e);
    case OPTION_CLUSTER_SIZE:
        return take_cluster_size(value, r, e);
    case OPTION_BACKING:
        r->create.backing_file = value;
        return 0;
    case OPTION_COMPRESSION:
        rc = props_choose(name, "value", value, methods, ARRAY_SIZE(methods), &i, e);
        r->create.compression = (enum qcow2_compression)i;
        return rc;
    case OPTION_PREALLOCATION:
        rc = props_choose(name, "value", value, modes, ARRAY_SIZE(modes), &i, e);
        r->create.preallocation = (enum qcow2_preallocation)i;
        return rc;
    case OPTION_COMPAT:
        rc = props_choose(name, "value", value, versions, ARRAY_SIZE(versions), &i, e);
        r->create.version = i + 2;
        return rc;
    case OPTION_REPAIR:
        rc = props_choose(name, "value", value, repairs, ARRAY_SIZE(repairs), &i, e);
        r->repair = i == 0 ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_ALL;
        return rc;
    case OPTION_COMPRESS:
        r->compresses = true;
        return 0;
    case OPTION_LAZY_REFCOUNTS:
        r->create.has_lazy_refcounts = true;
        return 0;
    case OPTION_FORCE:
        r->forces = true;
        return 0;
    case OPTION_SHRINK:
        r->shrinks = true;
        return 0;
    case OPTION_JSON:
        r->wants_json = true;
        return 0;
    case OPTION_HELP:
    case OPTION_COUNT:
        break;
    }
    return 0;
}

static int unknown_option(const struct image_command *command, const char *arg, struct err *e)
{
    const char *names[OPTION_COUNT];
    char typed[64];
    size_t count = 0;

    for (unsigned i = 0; i < OPTION_COUNT; i++)
        if (command->options & BIT(i))
            names[count++] = image_options[i].name;
    snprintf(typed, sizeof(typed), "%.*s", (int)strcspn(arg, "="), arg + strspn(arg, "-"));
    const char *near = suggest_nearest(typed, names, count);
    if (near != NULL)
        return err_set(e, 0, "unknown option '%s'; did you mean '--%s'?", arg, near);
    return err_set(e, 0, "unknown option '%s'; 'doppel image %s --help' lists them all", arg,
                   command->name);
}

/* argv[*i] is an option, perhaps followed by its value. */
static int parse_option(const struct image_command *command, int argc, char **argv, int *i,
                        struct image_request *r, struct err *e)
{
    const char *arg = argv[*i];
    size_t len = strcspn(arg, "=");
    const char *value = arg[len] == '=' ? arg + len + 1 : NULL;
    unsigned found = OPTION_COUNT;

    for (unsigned n = 0; n < OPTION_COUNT; n++)
        if ((command->options & BIT(n)) && len == strlen(image_options[n].name) + 2 &&
            strncmp(arg, "--", 2) == 0 && strncmp(arg + 2, image_options[n].name, len - 2) == 0)
            found = n;
    if (found == OPTION_COUNT)
        return unknown_option(command, arg, e);
    if (image_options[found].arg == NULL && value != NULL)
        return err_set(e, 0, "--%s takes no value", image_options[found].name);
    if (image_options[found].arg != NULL && value == NULL) {
        if (*i + 1 == argc)
            return err_set(e, 0, "--%s needs a value: --%s %s", image_options[found].name,
                           image_options[found].name, image_options[found].arg);
        value = argv[++*i];
    }
    if (value != NULL && value[0] == '\0')
        return err_set(e, 0, "--%s: the value is empty", image_options[found].name);
    return take_option((enum image_option)found, value, r, e);
}

static int parse(const struct image_command *command, int argc, char **argv,
                 struct image_request *r, struct err *e)
{
    unsigned count = 0;
    bool is_options_end = false;

    for (int i = 0; i < argc; i++) {
        int rc = 0;
        if (!is_options_end && strcmp(argv[i], "--") == 0)
            is_options_end = true;
        else if (!is_options_end && argv[i][0] == '-' && argv[i][1] != '\0')
            rc = parse_option(command, argc, argv, &i, r, e);
        else if (count < command->args_max)
            *(count++ == 0 ? &r->file : &r->second) = argv[i];
        else
            rc = err_set(e, 0,
                         "unexpected argument '%s'; 'doppel image %s --help' shows what it "
                         "takes",
                         argv[i], command->name);
        if (rc != 0)
            return rc;
    }
    if (count < command->args_min || (count > 0 && r->file[0] == '\0'))
        return err_set(e, 0, "something is missing: doppel image %s [options]%s", command->name,
                       command->args);
    return 0;
}

static const struct image_command *find(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

static int unknown_command(const char *name, struct err *e)
{
    const char *names[ARRAY_SIZE(table)];

    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        names[i] = table[i].name;
    const char *near = suggest_nearest(name, names, ARRAY_SIZE(names));
    if (near != NULL)
        return err_set(e, 0, "unknown command 'image %s'; did you mean '%s'?", name, near);
    return err_set(e, 0, "unknown command 'image %s'; 'doppel image --help' shows what there is",
                   name);
}

static bool is_help(const char *arg)
{
    return strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0;
}

int image_fail(const struct err *e)
{
    log_error("%s", e->msg);
    return EXIT_STATUS_ERROR;
}

int image_run(int argc, char **argv)
{
    struct image_request r = {
        .create = {.version = 3, .cluster_size = QCOW2_CLUSTER_DEFAULT},
    };
    int status = EXIT_STATUS_OK;
    struct err e;

    if (argc == 0) {
        err_set(&e, 0, "which command? 'doppel image --help' shows what there is");
        return image_fail(&e);
    }
    const struct image_command *command = find(argv[0]);
    bool wants_help = is_help(argv[0]);
    for (int i = 1; i < argc && command != NULL; i++)
        wants_help |= is_help(argv[i]);
    if (wants_help) {
        print_help(command);
    } else {
        int rc = command == NULL ? unknown_command(argv[0], &e)
                                 : parse(command, argc - 1, argv + 1, &r, &e);
        status = rc == 0 ? command->run(&r) : image_fail(&e);
    }
    return output_finish(status);
}
