/*
 * memfd.c - anonymous shared memory, mapped one or more times
 *
 * Spec: memfd_create(2); the size is sealed so that nobody who is handed the descriptor can
 * make an access of ours past the end (SIGBUS).
 */
#include "os/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

int memfd_make(const char *name, uint64_t size, struct err *e)
{
    /* Since Linux 6.3 the kernel wants to be told that nobody will execve the file. */
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_set(e, errno, "create the memory file '%s'", name);
    if (size > (uint64_t)INT64_MAX || ftruncate(fd, (off_t)size) != 0) {
        int code = size > (uint64_t)INT64_MAX ? EFBIG : errno;
        close(fd);
        return err_set(e, code, "size the memory file '%s' to %llu bytes", name,
                       (unsigned long long)size);
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        int code = errno;
        close(fd);
        return err_set(e, code, "seal the memory file '%s'", name);
    }
    return fd;
}

int memfd_map(int fd, uint64_t offset, size_t size, unsigned access, void **out, struct err *e)
{
    int prot = (access & MEMFD_READ ? PROT_READ : 0) | (access & MEMFD_WRITE ? PROT_WRITE : 0) |
               (access & MEMFD_EXEC ? PROT_EXEC : 0);
    void *ptr = mmap(NULL, size, prot, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
    if (ptr == MAP_FAILED)
        return err_set(e, errno, "map %zu bytes of a memory file", size);
    *out = ptr;
    return 0;
}

void memfd_unmap(void *ptr, size_t size)
{
    if (ptr != NULL)
        munmap(ptr, size);
}

bool memfd_discard(void *ptr, size_t size)
{
    return size == 0 || madvise(ptr, size, MADV_REMOVE) == 0;
}
