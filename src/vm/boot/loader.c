/*
 * loader.c - what kind of kernel a file is, and loading it
 *
 * The kernel is read as a whole each time the machine starts; an initrd, which can be large,
 * goes from the file straight into guest RAM.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vm/boot/boot.h"

/* No kernel comes near; keeps a wrong --kernel (a disk image) from being read into memory. */
#define KERNEL_SIZE_MAX (UINT64_C(1) << 30)

static int image_open(const char *path, const char *role, struct boot_image *image, struct err *e)
{
    struct stat stat;

    image->data = NULL;
    image->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (image->fd < 0)
        return err_set(e, errno, "open %s '%s'", role, path);
    if (fstat(image->fd, &stat) != 0)
        return err_set(e, errno, "look at %s '%s'", role, path);
    if (!S_ISREG(stat.st_mode))
        return err_set(e, 0, "open %s '%s': it is not a regular file", role, path);
    image->size = (uint64_t)stat.st_size;
    return 0;
}

/*
 * A kernel is large and soon let go: from the heap it might stay with the process for good, below
 * what was allocated meanwhile.
 */
static void image_forget(const struct boot_image *image, uint8_t *data)
{
    if (data != NULL)
        munmap(data, image->size + 1);
}

/* Read all of an open image; the caller calls image_forget. */
static int image_read(const struct boot_image *image, uint8_t **out, struct err *e)
{
    uint64_t done = 0;
    uint8_t *data;

    if (image->size > KERNEL_SIZE_MAX)
        return err_set(e, EFBIG, "load '%s' of %" PRIu64 " bytes as a kernel", image->name,
                       image->size);
    data = mmap(NULL, image->size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return err_set(e, errno, "allocate %" PRIu64 " bytes for '%s'", image->size, image->name);
    while (done < image->size) {
        ssize_t n = pread(image->fd, data + done, image->size - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            image_forget(image, data);
            if (n == 0)
                return err_set(e, 0, "read '%s': it has become shorter since it was opened",
                               image->name);
            return err_set(e, errno, "read '%s'", image->name);
        }
        done += (uint64_t)n;
    }
    *out = data;
    return 0;
}

static bool image_is_linux(const struct boot_image *kernel)
{
    return kernel->size >= 0x208 && load_le16(kernel->data + 0x1fe) == 0xaa55 &&
           memcmp(kernel->data + 0x202, "HdrS", 4) == 0;
}

int boot_detect(const struct boot_image *kernel, enum boot_format *format, struct err *e)
{
    if (kernel->size == 0)
        return err_set(e, 0, "load '%s': the file is empty", kernel->name);
    if (image_is_linux(kernel)) {
        *format = BOOT_LINUX;
        return 0;
    }
    if (boot_is_elf(kernel)) {
        struct boot_elf elf;
        int ret = boot_elf_parse(kernel, &elf, e);
        /* a Multiboot kernel with address fields need not be a sound ELF file */
        if (ret == 0 && elf.has_pvh) {
            *format = BOOT_PVH;
            return 0;
        }
        if (boot_multiboot_find(kernel) >= 0) {
            *format = BOOT_MULTIBOOT;
            return 0;
        }
        if (ret != 0)
            return ret;
        return err_set(e, 0,
                       "load '%s': it is an ELF file without a PVH note (XEN_ELFNOTE_PHYS32_ENTRY) "
                       "and without a Multiboot header: there is no way to start it",
                       kernel->name);
    }
    if (boot_multiboot_find(kernel) >= 0) {
        *format = BOOT_MULTIBOOT;
        return 0;
    }
    return err_set(e, 0,
                   "load '%s': it is neither a Linux bzImage, nor an ELF file with a PVH note, "
                   "nor a Multiboot 1 kernel",
                   kernel->name);
}

static int source_add_module(struct boot_source *source, const char *text, size_t length,
                             const char *role, struct err *e)
{
    struct boot_image *image = &source->modules[source->module_count];
    size_t path_length = length;
    char *path;
    int ret;

    if (source->module_count == BOOT_MODULES_MAX)
        return err_set(e, 0, "--initrd: more than %u modules", BOOT_MODULES_MAX);
    if (source->format == BOOT_MULTIBOOT) {
        const char *space = memchr(text, ' ', length);
        if (space != NULL)
            path_length = (size_t)(space - text);
    }
    if (path_length == 0)
        return err_set(e, 0, "--initrd: an empty file name");
    path = strndup(text, path_length);
    source->names[source->module_count + 1] = strndup(text, length);
    image->name = source->names[source->module_count + 1];
    image->fd = -1;
    source->module_count++;
    if (path == NULL || image->name == NULL)
        ret = err_set(e, ENOMEM, "open %s", role);
    else
        ret = image_open(path, role, image, e);
    free(path);
    return ret;
}

static int source_open_modules(struct boot_source *source, const char *initrd, struct err *e)
{
    if (initrd == NULL)
        return 0;
    if (source->format != BOOT_MULTIBOOT)
        return source_add_module(source, initrd, strlen(initrd), "initrd", e);
    for (;;) {
        size_t length = strcspn(initrd, ",");
        int ret = source_add_module(source, initrd, length, "module", e);
        if (ret != 0 || initrd[length] == '\0')
            return ret;
        initrd += length + 1;
    }
}

int boot_source_open(const char *kernel, const char *initrd, struct boot_source *out, struct err *e)
{
    struct boot_image image;
    uint8_t *data = NULL;
    int ret;

    memset(out, 0, sizeof(*out));
    out->kernel.fd = -1;
    out->names[0] = strdup(kernel);
    out->kernel.name = out->names[0];
    if (out->kernel.name == NULL)
        return err_set(e, ENOMEM, "open kernel '%s'", kernel);
    ret = image_open(kernel, "kernel", &out->kernel, e);
    if (ret == 0)
        ret = image_read(&out->kernel, &data, e);
    if (ret == 0) {
        image = out->kernel;
        image.data = data;
        ret = boot_detect(&image, &out->format, e);
    }
    image_forget(&out->kernel, data);
    if (ret == 0)
        ret = source_open_modules(out, initrd, e);
    if (ret != 0)
        boot_source_close(out);
    return ret;
}

void boot_source_close(struct boot_source *source)
{
    if (source->names[0] == NULL)
        return;
    if (source->kernel.fd >= 0)
        close(source->kernel.fd);
    for (unsigned i = 0; i < source->module_count; i++)
        if (source->modules[i].fd >= 0)
            close(source->modules[i].fd);
    for (unsigned i = 0; i < ARRAY_SIZE(source->names); i++)
        free(source->names[i]);
    memset(source, 0, sizeof(*source));
}

int boot_load(const struct boot_source *source, struct boot_load *load, struct cpu_state *st,
              struct err *e)
{
    struct boot_source loaded = *source;
    uint8_t *data = NULL;
    int ret = 0;

    load->claim_count = 0;
    if (source->kernel.data == NULL) {
        ret = image_read(&source->kernel, &data, e);
        loaded.kernel.data = data;
    }
    /* again: the file may have been rewritten in place since it was opened */
    if (ret == 0)
        ret = boot_detect(&loaded.kernel, &loaded.format, e);
    if (ret == 0 && loaded.format != source->format)
        ret = err_set(e, 0, "load '%s': it has changed since it was opened", source->kernel.name);
    if (ret == 0) {
        switch (source->format) {
        case BOOT_LINUX:
            ret = boot_load_linux(&loaded, load, st, e);
            break;
        case BOOT_PVH:
            ret = boot_load_pvh(&loaded, load, st, e);
            break;
        case BOOT_MULTIBOOT:
            ret = boot_load_multiboot(&loaded, load, st, e);
            break;
        }
    }
    image_forget(&source->kernel, data);
    return ret;
}

static void state_set_flat(struct cpu_seg *seg, uint16_t selector, uint32_t type)
{
    *seg = (struct cpu_seg){
        .selector = selector,
        .attr = type | SEG_TYPE_ACCESSED | SEG_TYPE_WRITE_READ | SEG_S | SEG_P | SEG_DB | SEG_G,
        .limit = UINT32_MAX,
    };
}

void boot_state_protected(struct cpu_state *st, uint16_t code, uint16_t data)
{
    static const uint8_t data_segs[] = {CPU_ES, CPU_SS, CPU_DS, CPU_FS, CPU_GS};

    state_set_flat(&st->seg[CPU_CS], code, SEG_TYPE_CODE);
    for (unsigned i = 0; i < ARRAY_SIZE(data_segs); i++)
        state_set_flat(&st->seg[data_segs[i]], data, 0);
    st->cr0 = CR0_PE | CR0_ET;
    st->rflags = RFLAGS_FIXED;
}
