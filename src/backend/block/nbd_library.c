/*
 * nbd_library.c - finding libnbd's functions
 */
#include "backend/block/nbd_library.h"

#include <dlfcn.h>
#include <errno.h>

#include "base/bits.h"

#define LIBRARY "libnbd.so.0"

int nbd_library_load(struct nbd_library *out, struct err *e)
{
    const struct {
        const char *name;
        void *slot;
    } functions[] = {
#define X(name) {"nbd_" #name, &out->name},
        NBD_FUNCTIONS(X)
#undef X
    };
    /* never closed: its threads' data would outlive it */
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

    if (library == NULL)
        return err_set(e, 0, "load " LIBRARY ", for NBD (is libnbd0 installed?): %s", dlerror());
    for (unsigned i = 0; i < ARRAY_SIZE(functions); i++) {
        void *address = dlsym(library, functions[i].name);
        if (address == NULL)
            return err_set(e, 0, "use " LIBRARY ", for NBD: %s", dlerror());
        *(void **)functions[i].slot = address;
    }
    return 0;
}
