// Scheduler, memory and runtime calls of the emulated device; see cuda_runtime.h.

#include <cuda_runtime.h>
#include <immintrin.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

std::recursive_mutex device;  // one kernel or copy at a time
cudaError_t last_error = cudaSuccess;

[[noreturn]] void stop(const char* what) {
  std::fprintf(stderr, "cuda emulation: %s (thread %u of block %u)\n", what, threadIdx.x, blockIdx.x);
  std::abort();
}

// ---- memory
// ------------------------------------------------------------------------------------------------------

constexpr size_t kArena = size_t(8) << 30;  // of addresses; pages come when they are touched
constexpr size_t kPage = 4096;
char* arena = nullptr;
size_t used = 0;
int open_count = 0;

bool inside(const void* p) { return arena && p >= arena && p < arena + kArena; }

void on_fault(int, siginfo_t* info, void*) {
  if (inside(info->si_addr)) {
    constexpr char text[] = "cuda emulation: host code touched device memory\n";
    [[maybe_unused]] const auto n = write(2, text, sizeof text - 1);
  }
  signal(SIGSEGV, SIG_DFL);  // the faulting instruction runs again
}

/// Device memory may be touched while one of these lives.
class Open {
 public:
  Open() : lock_(device) {
    if (open_count++ == 0 && used) mprotect(arena, used, PROT_READ | PROT_WRITE);
  }
  ~Open() {
    if (--open_count == 0 && used) mprotect(arena, used, PROT_NONE);
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

// ---- fibers
// ------------------------------------------------------------------------------------------------------

// Saves the callee's registers on the stack, keeps its pointer in *save and continues on the stack `to`.
extern "C" void cuda_emulation_switch(void** save, void* to);
asm(R"(
.text
.type cuda_emulation_switch, @function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

constexpr size_t kStack = size_t(256) << 10;
constexpr unsigned kMaxThreads = 1024, kWarp = 32;

enum class State : char { running, warp_barrier, block_barrier, done };

struct Fiber {
  std::unique_ptr<char[]> stack;
  void* sp = nullptr;
  State state = State::done;
};

Fiber fibers[kMaxThreads];
void* scheduler_sp = nullptr;
unsigned current = 0;
const std::function<void()>* body = nullptr;

struct Exchange {
  alignas(64) char slots[2][kWarp][cuda_emulation::kSlot];
  unsigned round[kWarp];
};
Exchange exchanges[kMaxThreads / kWarp];

void yield_as(State s) {
  Fiber& f = fibers[current];
  f.state = s;
  cuda_emulation_switch(&f.sp, scheduler_sp);
}

void fiber_main() {
  (*body)();
  yield_as(State::done);
  std::abort();  // a finished fiber is not continued
}

void start(Fiber& f) {
  if (!f.stack) f.stack = std::make_unique_for_overwrite<char[]>(kStack);
  auto top = reinterpret_cast<uintptr_t>(f.stack.get() + kStack) & ~uintptr_t(15);
  void** sp = reinterpret_cast<void**>(top) - 2;  // a call leaves the stack at 16·n + 8
  sp[0] = reinterpret_cast<void*>(fiber_main);
  sp -= 6;
  for (int i = 0; i < 6; ++i) sp[i] = nullptr;
  f.sp = sp;
  f.state = State::running;
}

void resume(unsigned t) {
  current = t;
  threadIdx = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
  fibers[t].state = State::running;
  cuda_emulation_switch(&scheduler_sp, fibers[t].sp);
}

/// Every other launch runs its blocks, warps and lanes from the last to the first: what one of them reads
/// from another without a barrier in between is missing in one of the two orders.
bool backwards = false;
unsigned turn(unsigned i, unsigned n) { return backwards ? n - 1 - i : i; }

/// Runs the threads [begin, end) until all wait for the block or are done.
void run_warp(unsigned begin, unsigned end) {
  for (;;) {
    unsigned at_warp = 0;
    for (unsigned i = 0; i < end - begin; ++i) {
      const unsigned t = begin + turn(i, end - begin);
      if (fibers[t].state == State::running || fibers[t].state == State::warp_barrier) resume(t);
      at_warp += fibers[t].state == State::warp_barrier;
    }
    if (at_warp == 0) return;
    if (at_warp != kWarp) stop("some lanes of a warp do not reach its operation");
  }
}

void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) start(fibers[t]);
  for (auto& e : exchanges) std::memset(e.round, 0, sizeof e.round);
  for (;;) {
    unsigned waiting = 0;
    const unsigned warps = (threads + kWarp - 1) / kWarp;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned w = turn(i, warps) * kWarp;
      run_warp(w, std::min(w + kWarp, threads));
    }
    for (unsigned t = 0; t < threads; ++t) waiting += fibers[t].state == State::block_barrier;
    if (waiting == 0) return;
    // Hardware counts threads that have left as arrived; code that relies on it is rare and usually wrong.
    if (waiting != threads) stop("some threads of a block do not reach its barrier");
    for (unsigned t = 0; t < threads; ++t) fibers[t].state = State::running;
  }
}

/// Of the running block; bytes behind its end and in front of a block's first write are no zeros.
constexpr size_t kMaxShared = size_t(99) << 10;
alignas(128) unsigned char shared_memory[kMaxShared];

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& f) {
  Open open;
  blockDim = block, gridDim = grid, body = &f;
  backwards = !backwards;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(turn(x, grid.x), turn(y, grid.y), turn(z, grid.z));
        if (shared_bytes) std::memset(shared_memory, 0xa5, kMaxShared);
        run_block(block.x * block.y * block.z);
      }
}

cudaError_t remember(cudaError_t e) { return e == cudaSuccess ? e : last_error = e; }

constexpr int kDevices = 2;  ///< of one memory; a kernel belongs on the device of its stream
thread_local int current_device = 0;

// ---- queue
// -------------------------------------------------------------------------------------------------------

using Work = std::function<bool(bool first)>;  ///< whether it is over
struct Queue {
  struct Item {
    Work work;
    unsigned arithmetic;  ///< rounding and denormals of the thread that gave it
    bool begun = false;
  };
  std::deque<Item> items;
  std::atomic<int64_t> given = 0, over = 0;
  std::condition_variable_any more;
  bool helped = false;
};
Queue& queue = *new Queue;  // the helper may see the end of the program

void help() {
  std::unique_lock lock(device);
  for (;;) {
    queue.more.wait(lock, [] { return !queue.items.empty(); });
    cuda_emulation::advance();
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    lock.lock();
  }
}

void give(Work work) {
  std::lock_guard lock(device);
  queue.items.push_back({std::move(work), _mm_getcsr()});
  ++queue.given;
  cuda_emulation::advance();
  if (queue.items.empty()) return;
  if (!std::exchange(queue.helped, true)) std::thread(help).detach();
  queue.more.notify_one();
}

bool reached(int64_t given) {
  cuda_emulation::advance();
  return queue.over >= given;
}
void wait_until(int64_t given) {
  while (!reached(given)) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

// ---- capture
// -----------------------------------------------------------------------------------------------------

struct Recording {
  std::vector<Work> nodes;
  bool spoiled = false;
  int64_t number = 0;  ///< of all recordings, from 1
  cudaStream_t origin = nullptr;
  int64_t now = 0;                         ///< counts what is recorded, events too
  std::map<cudaStream_t, int64_t> joined;  ///< streams that wait for the origin, and their newest work
  std::map<cudaStream_t, int64_t> seen;    ///< until where the origin waits for them
  bool has(cudaStream_t s) const { return !s || s == origin || joined.contains(s); }
};
Recording* recording = nullptr;  ///< while a stream is captured
struct Counters {
  std::atomic<int64_t> launches = 0, copies = 0, graph_launches = 0, allocations = 0, waits = 0;
} counted;

/// For calls that a captured stream does not allow.
bool refused() {
  if (recording) recording->spoiled = true;
  return recording != nullptr;
}
cudaError_t refusal() { return remember(cudaErrorStreamCaptureUnsupported); }
cudaError_t wait_for_all() {
  ++counted.waits;
  if (refused()) return refusal();
  wait_until(queue.given);
  return cudaSuccess;
}

/// Runs `work` as soon as it can be, or keeps it for the graph.
void start_or_record(cudaStream_t s, Work work) {
  if (!recording) return give(std::move(work));
  recording->nodes.push_back(std::move(work));
  ++recording->now;
  if (const auto j = recording->joined.find(s); j != recording->joined.end()) j->second = recording->now;
}
void start_or_record(cudaStream_t s, std::function<void()> work) {
  start_or_record(s, [work = std::move(work)](bool) { return work(), true; });
}

}  // namespace

struct EmulatedStream {
  int device;
};
struct EmulatedEvent {
  int64_t after = 0;    ///< what had been given when it was recorded
  int64_t capture = 0;  ///< the number of that which it is part of
  cudaStream_t stream = nullptr;
  int64_t at = 0;
};
struct EmulatedGraph {
  std::vector<Work> nodes;
};

void cuda_emulation::advance() {
  std::lock_guard lock(device);
  while (!queue.items.empty()) {
    Queue::Item& i = queue.items.front();
    const unsigned mine = _mm_getcsr();
    _mm_setcsr(i.arithmetic);
    const bool over = i.work(!std::exchange(i.begun, true));
    _mm_setcsr(mine);
    if (!over) return;
    queue.items.pop_front();
    ++queue.over;
  }
}
bool cuda_emulation::enqueue(cudaStream_t s, int device, std::function<bool(bool first)> work) {
  if (s->device != device || (recording && !recording->has(s) && refused())) return false;
  start_or_record(s, std::move(work));
  return true;
}
void cuda_emulation::with_device_memory(const std::function<void()>& f) {
  Open open;
  f();
}

/// Calls of the program so far, what a graph does inside not counted: kernels, copies, graphs, allocations,
/// waits (tests/support/device_calls.h).
extern "C" void cuda_emulation_calls(int64_t* to) {
  to[0] = counted.launches, to[1] = counted.copies, to[2] = counted.graph_launches;
  to[3] = counted.allocations, to[4] = counted.waits;
}

void __syncthreads() { yield_as(State::block_barrier); }

const void* cuda_emulation::exchange(const void* mine, size_t bytes) {
  Exchange& e = exchanges[current / kWarp];
  const unsigned lane = current % kWarp, side = e.round[lane]++ % 2;
  std::memcpy(e.slots[side][lane], mine, bytes);
  yield_as(State::warp_barrier);
  return e.slots[side];
}

void cuda_emulation::launch(dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                            std::function<void()> f) {
  ++counted.launches;
  start_or_record(static_cast<cudaStream_t>(stream),
                  std::function<void()>([=, f = std::move(f)] { run(grid, block, shared_bytes, f); }));
}

void* cuda_emulation::dynamic_shared() { return shared_memory; }

cudaError_t cuda_emulation_check(const cudaLaunchConfig_t& c) {
  const uint64_t threads = uint64_t(c.blockDim.x) * c.blockDim.y * c.blockDim.z;
  const bool grid = c.gridDim.x && c.gridDim.y && c.gridDim.z && c.gridDim.x < 0x80000000u &&
                    c.gridDim.y < 65536 && c.gridDim.z < 65536;
  if (!grid || !threads || threads > kMaxThreads || c.dynamicSmemBytes > kMaxShared)
    return remember(cudaErrorInvalidConfiguration);
  const bool here = !c.stream || c.stream->device == current_device;
  return remember(here ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    default:
      return "invalid device ordinal";
  }
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaGetDeviceCount(int* count) { return *count = kDevices, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { return *d = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= kDevices) return remember(cudaErrorInvalidDevice);
  return current_device = d, cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return wait_for_all(); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  return *s = new EmulatedStream{current_device}, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { return delete s, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait_for_all(); }

cudaError_t cudaMalloc(void** p, size_t bytes) {
  std::lock_guard lock(device);
  ++counted.allocations;
  if (refused()) return refusal();
  if (!arena) {
    arena = static_cast<char*>(
        mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (arena == MAP_FAILED) return arena = nullptr, remember(cudaErrorMemoryAllocation);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
  }
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  if (size > kArena - used) return remember(cudaErrorMemoryAllocation);
  *p = arena + used;
  used += size;
  if (open_count) mprotect(*p, size, PROT_READ | PROT_WRITE);
  return cudaSuccess;
}
cudaError_t cudaFree(void*) {  // addresses are not used twice, so that stale ones show
  ++counted.waits;
  return refused() ? refusal() : cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  ++counted.allocations;
  if (refused()) return refusal();
  *p = std::malloc(bytes);
  return *p ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t s) {
  ++counted.copies;
  start_or_record(s, std::function<void()>([=] {
                    Open open;
                    std::memmove(to, from, bytes);
                  }));
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t s) {
  start_or_record(s, std::function<void()>([=] {
                    Open open;
                    std::memset(to, value, bytes);
                  }));
  return cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t s) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = new EmulatedEvent, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  if (recording && recording->has(s))
    e->capture = recording->number, e->stream = s, e->at = ++recording->now;
  else
    e->capture = 0, e->after = queue.given;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  if (!recording) return cudaSuccess;  // all streams are one queue
  if (e->capture != recording->number) {
    if (!recording->has(s)) return cudaSuccess;
    recording->spoiled = true;
    return remember(cudaErrorStreamCaptureIsolation);
  }
  if (s == recording->origin)
    recording->seen[e->stream] = std::max(recording->seen[e->stream], e->at);
  else
    recording->joined[s] = ++recording->now;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  if (refused()) return refusal();
  return reached(e->after) ? cudaSuccess : remember(cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  ++counted.waits;
  if (refused()) return refusal();
  wait_until(e->after);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  if (refused()) return refusal();
  static int64_t recordings = 0;
  recording = new Recording;
  recording->number = ++recordings;
  recording->origin = s;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!recording) return refusal();
  const std::unique_ptr<Recording> done(std::exchange(recording, nullptr));
  if (done->spoiled) return remember(cudaErrorStreamCaptureInvalidated);
  for (const auto& [stream, newest] : done->joined)
    if (done->seen[stream] < newest) return remember(cudaErrorStreamCaptureUnjoined);
  *graph = new EmulatedGraph{std::move(done->nodes)};
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return *count = graph->nodes.size(), cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = new EmulatedGraph(*graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  ++counted.graph_launches;
  if (refused()) return refusal();
  for (const Work& node : executable->nodes) give(node);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }
