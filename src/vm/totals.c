/*
 * totals.c - what every engine counted that the machine has run on
 *
 * An engine's counters end with it. What counted something of a CPU is written down before, so
 * that the machine's statistics go on through changes of the engine; what only says how the engine
 * stands (groups of no CPU: its code cache, say) is the present engine's alone.
 *
 * Main loop's thread.
 */
#include <string.h>

#include "base/log.h"
#include "base/stats_book.h"
#include "vm/machine.h"

/* The book of engines of that name; NULL: there is no room for so many (tests have their own). */
static struct stats_book *totals_book(struct vm *vm, const struct engine_ops *ops)
{
    for (unsigned i = 0; i < ARRAY_SIZE(vm->totals); i++) {
        struct vm_totals *totals = &vm->totals[i];
        if (totals->ops == NULL) {
            totals->ops = ops;
            stats_book_init(&totals->book);
        }
        if (strcmp(totals->ops->name, ops->name) == 0)
            return &totals->book;
    }
    return NULL;
}

static void totals_warn(const struct stats_book *book)
{
    static struct log_limit limit;

    if (book->is_incomplete && log_limit_allows(&limit))
        log_warn("statistics of engines: some counters are missing, there are too many or memory "
                 "is short");
}

void totals_keep(struct vm *vm, const struct vm_engine *engine)
{
    struct stats_book *book = totals_book(vm, engine->ops);

    if (book == NULL)
        return;
    engine->ops->report_stats(engine->engine, &book->sink);
    totals_warn(book);
}

static void totals_report_present(struct vm *vm, const struct stats_book *past,
                                  struct stats_sink *sink)
{
    struct stats_book sum;

    stats_book_init(&sum);
    if (past != NULL)
        stats_book_report(past, true, &sum.sink);
    vm->ops->report_stats(vm->engine, &sum.sink);
    totals_warn(&sum);
    stats_book_report(&sum, false, sink);
    stats_book_fini(&sum);
}

void totals_report(struct vm *vm, struct stats_sink *sink)
{
    struct stats_book *present = totals_book(vm, vm->ops);

    sink->engine = vm->ops->name;
    totals_report_present(vm, present, sink);
    for (unsigned i = 0; i < ARRAY_SIZE(vm->totals); i++) {
        const struct vm_totals *totals = &vm->totals[i];
        if (totals->ops == NULL || &totals->book == present)
            continue;
        sink->engine = totals->ops->name;
        stats_book_report(&totals->book, true, sink);
    }
    sink->engine = NULL;
}

void totals_forget(struct vm *vm)
{
    for (unsigned i = 0; i < ARRAY_SIZE(vm->totals); i++)
        if (vm->totals[i].ops != NULL)
            stats_book_fini(&vm->totals[i].book);
}
