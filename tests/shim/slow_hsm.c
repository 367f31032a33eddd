/* A PKCS#11 module that is another one, made slow: it stands for a network HSM.
 *
 * C_GetFunctionList gives the function list of the module that SLOW_HSM_MODULE names, with two
 * entries of its own: itself, and C_Sign, which lasts as long as the state file says. So every
 * other call goes to that module without coming by here. It is not an HSM, and not thread-safe
 * in anything but what it counts: the module behind it has its own locks.
 *
 * The state file, SLOW_HSM_STATE, is four 64-bit numbers in the machine's byte order, shared by
 * every process that has loaded this and by the test:
 *
 *   delay   microseconds from a C_Sign's beginning to its return; read again all the time, so
 *           that a test holds the HSM with a long one and lets it go with a short one
 *   calls   how many C_Sign have returned
 *   inside  how many are in C_Sign now
 *   most    the largest `inside` so far
 *
 * PKCS#11 v2.40: section 5.4 (C_GetFunctionList), 5.11 (C_Sign), appendix for CK_FUNCTION_LIST.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long CK_RV; /* CK_ULONG of the standard, on every Unix */
typedef unsigned char CK_BYTE;

#define CKR_OK 0x0UL
#define CKR_GENERAL_ERROR 0x5UL
#define CKR_ARGUMENTS_BAD 0x7UL

/* CK_FUNCTION_LIST, in the standard's order. */
#define FUNCTIONS(F)                                                                             \
    F(C_Initialize) F(C_Finalize) F(C_GetInfo) F(C_GetFunctionList) F(C_GetSlotList)             \
    F(C_GetSlotInfo) F(C_GetTokenInfo) F(C_GetMechanismList) F(C_GetMechanismInfo)               \
    F(C_InitToken) F(C_InitPIN) F(C_SetPIN) F(C_OpenSession) F(C_CloseSession)                   \
    F(C_CloseAllSessions) F(C_GetSessionInfo) F(C_GetOperationState) F(C_SetOperationState)      \
    F(C_Login) F(C_Logout) F(C_CreateObject) F(C_CopyObject) F(C_DestroyObject)                  \
    F(C_GetObjectSize) F(C_GetAttributeValue) F(C_SetAttributeValue) F(C_FindObjectsInit)        \
    F(C_FindObjects) F(C_FindObjectsFinal) F(C_EncryptInit) F(C_Encrypt) F(C_EncryptUpdate)      \
    F(C_EncryptFinal) F(C_DecryptInit) F(C_Decrypt) F(C_DecryptUpdate) F(C_DecryptFinal)         \
    F(C_DigestInit) F(C_Digest) F(C_DigestUpdate) F(C_DigestKey) F(C_DigestFinal) F(C_SignInit)  \
    F(C_Sign) F(C_SignUpdate) F(C_SignFinal) F(C_SignRecoverInit) F(C_SignRecover)               \
    F(C_VerifyInit) F(C_Verify) F(C_VerifyUpdate) F(C_VerifyFinal) F(C_VerifyRecoverInit)        \
    F(C_VerifyRecover) F(C_DigestEncryptUpdate) F(C_DecryptDigestUpdate)                         \
    F(C_SignEncryptUpdate) F(C_DecryptVerifyUpdate) F(C_GenerateKey) F(C_GenerateKeyPair)        \
    F(C_WrapKey) F(C_UnwrapKey) F(C_DeriveKey) F(C_SeedRandom) F(C_GenerateRandom)               \
    F(C_GetFunctionStatus) F(C_CancelFunction) F(C_WaitForSlotEvent)

#define MEMBER(name) void *name;

struct function_list {
    CK_BYTE version[2];
    FUNCTIONS(MEMBER)
};

typedef CK_RV get_function_list(struct function_list **);
typedef CK_RV sign(unsigned long session, CK_BYTE *data, unsigned long length,
                   CK_BYTE *signature, unsigned long *signature_length);

struct state {
    uint64_t delay, calls, inside, most;
};

static struct function_list functions;
static struct state *state;
static sign *real_sign;

static CK_RV failed(const char *what, const char *why)
{
    fprintf(stderr, "slow_hsm: %s: %s\n", what, why);
    return CKR_GENERAL_ERROR;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Until `start` is the state's delay ago. In slices, because the delay may change meanwhile.
 *
 * A sleeping thread is late: on an idle virtual machine by 0.1 ms and more, which would make an HSM
 * of 2 ms one of 2.15. So it gets up as much earlier as threads were late of late; then a call
 * lasts what it should on average. */
static void wait_since(uint64_t start)
{
    static const uint64_t slice = 5000000;
    static uint64_t lateness;
    prctl(PR_SET_TIMERSLACK, 1UL); /* of this thread; sleeps would last 50 us longer */
    for (;;) {
        uint64_t end = start + __atomic_load_n(&state->delay, __ATOMIC_RELAXED) * 1000;
        uint64_t time = now();
        uint64_t early = __atomic_load_n(&lateness, __ATOMIC_RELAXED);
        if (time + early >= end) {
            uint64_t late = time + early - end;
            if (late < slice) /* else the process was stopped, or the delay made shorter */
                __atomic_store_n(&lateness, early - early / 16 + late / 16, __ATOMIC_RELAXED);
            return;
        }
        end -= early;
        if (end > time + slice)
            end = time + slice;
        struct timespec until = {.tv_sec = (time_t)(end / 1000000000),
                                 .tv_nsec = (long)(end % 1000000000)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
}

static CK_RV C_Sign(unsigned long session, CK_BYTE *data, unsigned long length,
                    CK_BYTE *signature, unsigned long *signature_length)
{
    if (!signature) /* asks for the length alone: no device is asked for that */
        return real_sign(session, data, length, signature, signature_length);
    uint64_t start = now();
    uint64_t inside = __atomic_add_fetch(&state->inside, 1, __ATOMIC_RELAXED);
    uint64_t most = __atomic_load_n(&state->most, __ATOMIC_RELAXED);
    while (inside > most && !__atomic_compare_exchange_n(&state->most, &most, inside, 0,
                                                         __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    CK_RV code = real_sign(session, data, length, signature, signature_length);
    wait_since(start);
    __atomic_sub_fetch(&state->inside, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&state->calls, 1, __ATOMIC_RELAXED);
    return code;
}

static CK_RV load_state(void)
{
    const char *path = getenv("SLOW_HSM_STATE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return failed("SLOW_HSM_STATE", "names no file that can be written");
    void *memory = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED)
        return failed("SLOW_HSM_STATE", "cannot be mapped");
    state = memory;
    return CKR_OK;
}

static CK_RV load_module(void)
{
    const char *path = getenv("SLOW_HSM_MODULE");
    void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!module)
        return failed("SLOW_HSM_MODULE", path ? dlerror() : "is not set");
    get_function_list *get = (get_function_list *)dlsym(module, "C_GetFunctionList");
    struct function_list *list;
    if (!get || get(&list) != CKR_OK)
        return failed("SLOW_HSM_MODULE", "is no PKCS#11 module");
    real_sign = (sign *)list->C_Sign;
    functions = *list;
    return CKR_OK;
}

CK_RV C_GetFunctionList(struct function_list **list)
{
    if (!list)
        return CKR_ARGUMENTS_BAD;
    if (!real_sign) {
        CK_RV code = load_state();
        if (code == CKR_OK)
            code = load_module();
        if (code != CKR_OK)
            return code;
        functions.C_Sign = (void *)C_Sign;
        functions.C_GetFunctionList = (void *)C_GetFunctionList;
    }
    *list = &functions;
    return CKR_OK;
}
