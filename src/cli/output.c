/*
 * output.c - what commands write to standard output
 */
#include "cli/output.h"

#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "base/log.h"
#include "cli/run.h"

#define HELP_COLUMN 31

void output_option(FILE *out, const char *name, const char *arg, const char *help)
{
    int used = fprintf(out, "  --%s%s%s", name, arg != NULL ? " " : "", arg != NULL ? arg : "");

    for (const char *line = help; line != NULL; used = 0) {
        const char *end = strchr(line, '\n');
        int len = end != NULL ? (int)(end - line) : (int)strlen(line);
        fprintf(out, "%*s%.*s\n", MAX(HELP_COLUMN - used, 1), "", len, line);
        line = end != NULL ? end + 1 : NULL;
    }
}

int output_finish(int status)
{
    if ((fflush(stdout) == 0 && !ferror(stdout)) || status != EXIT_STATUS_OK)
        return status;
    log_error("write standard output: %s", strerror(errno));
    return EXIT_STATUS_ERROR;
}
