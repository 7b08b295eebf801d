// The CUDA kernels alone, without torch: each in several cuts beside a copy of the same memory.
//
//   nvcc -O3 -std=c++20 -arch=sm_90 -DFASTVAE_DEVICE=cuda \
//     --expt-relaxed-constexpr -o bench benchmarks/bench_kernels.cu csrc/cuda/table.cpp \
//     $(find build -path '*kernels_CUDA*' -name '*.o')
//   ./bench [--once]
//
// Prints, for each kernel, the lanes of a row's group that were tried (* is what tile() takes),
// milliseconds and the share of the bandwidth of a copy. With --once each kernel runs once over
// less memory, for a profiler.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../csrc/cuda/runtime.h"
#include "../csrc/likelihoods.h"

namespace fastvae::cuda {
namespace {

int tried_lanes = 0;  // 0: what tile() takes
int taken_lanes = 0;
char* workspace = nullptr;
constexpr size_t kWorkspace = size_t{256} << 20;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

}  // namespace

void* current_stream() { return nullptr; }
void check_launch() { check(cudaGetLastError()); }
Tiling tiling(int64_t rows, int64_t columns, int vector, const Cut& cut) {
  taken_lanes = lanes_for(rows, columns, vector, cut);
  // A few rows that are one run each are not for a few threads.
  const bool tries = tried_lanes && rows >= 100;
  return tile(rows, columns, vector, cut, tries ? tried_lanes : taken_lanes);
}
Workspace::Workspace(int64_t bytes) : data_(workspace) {
  if (static_cast<size_t>(bytes) > kWorkspace) check(cudaErrorMemoryAllocation);
}
Workspace::~Workspace() {}

namespace {

__device__ unsigned hash(unsigned x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

enum class Fill { logits, probabilities, bytes };

// Numbers like those of training: zeros would take less power, and so less time.
__global__ void fill(void* data, size_t count, Dtype dtype, Fill kind) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const unsigned h = hash(static_cast<unsigned>(i));
    const float unit = h * 0x1p-32f;
    const float x = kind == Fill::logits ? 4 * unit - 2 : unit;
    if (dtype == Dtype::u8) static_cast<unsigned char*>(data)[i] = h >> 24;
    if (dtype == Dtype::boolean) static_cast<unsigned char*>(data)[i] = h >> 31;
    if (dtype == Dtype::f32) static_cast<float*>(data)[i] = x;
    if (dtype == Dtype::bf16)  // truncated
      static_cast<unsigned short*>(data)[i] = __float_as_uint(x) >> 16;
  }
}

__global__ void copy_vectors(const uint4* from, uint4* to, size_t count) {
  const size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i];
}

size_t size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : dtype == Dtype::bf16 ? 2 : 1;
}

// Memory is never given back: the process ends soon.
void* allocate(size_t count, Dtype dtype, Fill kind) {
  void* data = nullptr;
  check(cudaMalloc(&data, count * size_of(dtype)));
  fill<<<4096, 256>>>(data, count, dtype, kind);
  check_launch();
  return data;
}

struct Milliseconds {
  cudaEvent_t begin, end;
  Milliseconds() {
    check(cudaEventCreate(&begin));
    check(cudaEventCreate(&end));
  }
  // The median of several runs of several calls.
  double operator()(const std::function<void()>& call, int runs = 7, int calls = 5) {
    call();
    std::vector<double> samples;
    for (int r = 0; r < runs; ++r) {
      check(cudaEventRecord(begin));
      for (int i = 0; i < calls; ++i) call();
      check(cudaEventRecord(end));
      check(cudaEventSynchronize(end));
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin, end));
      samples.push_back(milliseconds / calls);
    }
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2];
  }
};

struct Kernel {
  std::string name;
  size_t bytes;
  std::vector<int> lanes;
  std::function<void()> call;
};

// Buffers that all kernels share, as large as the largest needs.
struct Bench {
  int64_t elements;
  void *logits, *other, *bf16, *narrow, *pixels, *bits, *out, *second, *sums, *scalar;
  std::vector<Kernel> kernels;

  explicit Bench(int64_t elements) : elements(elements) {
    logits = allocate(elements, Dtype::f32, Fill::logits);
    other = allocate(elements, Dtype::f32, Fill::probabilities);
    bf16 = allocate(elements, Dtype::bf16, Fill::logits);
    narrow = allocate(elements, Dtype::bf16, Fill::probabilities);
    pixels = allocate(elements, Dtype::u8, Fill::bytes);
    bits = allocate(elements, Dtype::boolean, Fill::bytes);
    out = allocate(elements, Dtype::f32, Fill::logits);
    second = allocate(elements, Dtype::f32, Fill::logits);
    sums = allocate(elements, Dtype::f32, Fill::logits);
    scalar = allocate(64, Dtype::f32, Fill::probabilities);
    losses();
    few_rows();
    moments();
    rest();
  }

  const LikelihoodKernels& cross_entropy = of(Likelihood::sigmoid_cross_entropy);
  const LikelihoodKernels& gaussian = of(Likelihood::gaussian_nll);

  static const LikelihoodKernels& of(Likelihood likelihood) {
    return *cuda::kernels.likelihood[static_cast<size_t>(likelihood)];
  }

  static LikelihoodInputs inputs(const Input& parameter, const Input& target) {
    LikelihoodInputs in;
    in.parameter[0] = parameter;
    in.target = target;
    return in;
  }

  static Input input(const void* data, Dtype dtype, int64_t columns, int64_t stride_k = 0) {
    Input in;
    in.kind = Input::Kind::elements;
    in.data = data;
    in.dtype = dtype;
    in.stride_b = columns;
    in.stride_k = stride_k;
    return in;
  }
  static Target target(const void* data, Dtype dtype, int64_t columns) {
    return {input(data, dtype, columns)};
  }
  static Output output(void* data, Dtype dtype, int64_t columns, int64_t stride_k = 0) {
    return {dtype, data, stride_k, columns};
  }
  Sums row_sums() const { return {Dtype::f32, sums}; }
  PerRow upstream() const {  // one number a row
    PerRow g;
    g.kind = Input::Kind::row;
    g.data = sums;
    g.stride_b = 1;
    g.value = 1;
    return g;
  }
  template <class Noise>
  Noise noise(Input::Kind kind) const {
    Noise n;
    n.kind = kind;
    n.key = {7, 11};
    return n;
  }
  void add(const std::string& name, size_t bytes, std::vector<int> lanes,
           std::function<void()> call) {
    kernels.push_back({name, bytes, std::move(lanes), std::move(call)});
  }

  void losses() {
    const std::vector<int> lanes{4, 8, 16, 32, 256};
    const Kernels& k = cuda::kernels;
    for (const int64_t D : {int64_t{784}, int64_t{3072}}) {
      const Extent e{1, elements / D, D};
      const size_t n = e.B * e.D, rows = e.B * 4;
      const std::string shape = ", D " + std::to_string(D);
      struct Types {
        const char* name;
        const void* logits;
        Dtype l;
        const void* target;
        Dtype x;
      };
      for (const Types& t : {Types{"f32", logits, Dtype::f32, other, Dtype::f32},
                             Types{"bf16 u8", bf16, Dtype::bf16, pixels, Dtype::u8},
                             Types{"bf16 bf16", bf16, Dtype::bf16, narrow, Dtype::bf16},
                             Types{"f32 bool", logits, Dtype::f32, bits, Dtype::boolean}}) {
        const size_t in = n * (size_of(t.l) + size_of(t.x)), grad = n * size_of(t.l);
        const Input l = input(t.logits, t.l, D);
        const Target x = target(t.target, t.x, D);
        const Output g = output(out, t.l, D);
        const std::string of = std::string(" ") + t.name + shape;
        add("sce" + of, in + rows, lanes,
            [=, this] { cross_entropy.sum(e, inputs(l, x), row_sums()); });
        add("sce with grad" + of, in + grad + rows, lanes,
            [=, this] { cross_entropy.sum_with_grads(e, inputs(l, x), 1.0, row_sums(), &g); });
        if (D == 784)
          add("sce backward" + of, in + grad + rows, lanes,
              [=, this] { cross_entropy.backward(e, upstream(), inputs(l, x), &g); });
      }
      if (D != 784) continue;
      Input logvar;  // sigma, a tensor of one number
      logvar.kind = Input::Kind::constant;
      logvar.data = scalar;
      logvar.value = -1;
      Input inverse = logvar;
      inverse.value = 2;
      for (const bool half : {false, true}) {
        const Dtype l = half ? Dtype::bf16 : Dtype::f32, x = half ? Dtype::u8 : Dtype::f32;
        const Input mean = input(half ? bf16 : logits, l, D);
        const Target at = target(half ? pixels : other, x, D);
        const std::string of = std::string(" sigma a tensor, ") + (half ? "bf16 u8" : "f32");
        const size_t in = n * (size_of(l) + size_of(x));
        LikelihoodInputs of_sigma = inputs(mean, at);
        of_sigma.has_numbers = true;
        of_sigma.number[0] = logvar;
        of_sigma.number[1] = inverse;
        add("nll" + of, in + rows, lanes, [=, this] { gaussian.sum(e, of_sigma, row_sums()); });
        add("nll backward" + of, in + n * size_of(l) + rows, lanes, [=, this] {
          const Output grad = output(out, l, D);
          gaussian.backward(e, upstream(), of_sigma, &grad);
        });
      }
      const Input mean = input(logits, Dtype::f32, D);
      const Target at = target(other, Dtype::f32, D);
      LikelihoodInputs each = inputs(mean, at);
      each.parameter[1] = input(second, Dtype::f32, D);
      add("nll logvar f32", 3 * n * 4 + rows, lanes,
          [=, this] { gaussian.sum(e, each, row_sums()); });
      LikelihoodInputs columns = each;
      columns.parameter[1] = {};
      columns.parameter[1].kind = Input::Kind::shared;
      columns.parameter[1].data = second;
      columns.parameter[1].count = D;
      add("nll logvar [D] f32, backward by columns", 3 * n * 4 + rows, {}, [=, this] {
        const Output grad = output(out, Dtype::f32, D);
        gaussian.backward_columns(e, upstream(), columns, &grad, row_sums());
      });
      add("sum of columns f32", n * 4, {}, [=, this] { k.sum_columns(e, mean, row_sums()); });
    }
  }

  // Batches of training, which stay in the cache between calls.
  void few_rows() {
    const int64_t D = 784;
    for (const int64_t B : {100, 512, 1024, 2048, 4096, 8192, 16384}) {
      const Extent e{1, B, D};
      const Input l = input(logits, Dtype::f32, D);
      const Target x = target(other, Dtype::f32, D);
      add("sce with grad f32, " + std::to_string(B) + " rows", B * D * 12, {4, 8, 16, 32, 256},
          [=, this] {
            const Output grad = output(out, Dtype::f32, D);
            cross_entropy.sum_with_grads(e, inputs(l, x), 1.0, row_sums(), &grad);
          });
      const Input narrow_l = input(bf16, Dtype::bf16, D);
      const Target narrow_x = target(pixels, Dtype::u8, D);
      add("sce with grad bf16 u8, " + std::to_string(B) + " rows", B * D * 5, {4, 8, 16, 32, 256},
          [=, this] {
            const Output grad = output(out, Dtype::bf16, D);
            cross_entropy.sum_with_grads(e, inputs(narrow_l, narrow_x), 1.0, row_sums(), &grad);
          });
    }
  }

  void moments() {
    const Kernels& k = cuda::kernels;
    for (const int64_t L : {int64_t{32}, int64_t{2}, int64_t{50}}) {
      const Extent e{1, elements / L, L};
      const size_t n = e.B * e.D, rows = e.B * 4;
      const Input mu = input(logits, Dtype::f32, L), logvar = input(other, Dtype::f32, L);
      const Output a = output(out, Dtype::f32, L), b = output(second, Dtype::f32, L);
      const Normal eps = noise<Normal>(Input::Kind::normal);
      const std::string of = ", L " + std::to_string(L);
      const std::vector<int> lanes = L == 2 ? std::vector<int>{1} : std::vector<int>{2, 4, 8, 16};
      add("kl" + of, 2 * n * 4 + rows, lanes,
          [=, this] { k.gaussian_kl(e, mu, logvar, row_sums()); });
      add("kl backward" + of, 4 * n * 4 + rows, lanes,
          [=, this] { k.gaussian_kl_backward(e, upstream(), mu, logvar, a, b); });
      add("reparameterize" + of, 3 * n * 4, lanes,
          [=] { k.reparameterize(e, mu, logvar, eps, a); });
      add("sample_kl" + of, 3 * n * 4 + rows, lanes,
          [=, this] { k.sample_kl(e, mu, logvar, eps, a, row_sums()); });
      const Input gz = input(pixels, Dtype::f32, L);  // any bytes; a quarter of the memory
      const Extent quarter{1, e.B / 4, L};
      add("sample_kl backward" + of, (5 * n * 4 + rows) / 4, lanes,
          [=, this] { k.sample_kl_backward(quarter, gz, upstream(), mu, logvar, eps, a, b); });
    }
    const int64_t K = 50, L = 50, B = elements / (K * L), D = 784;
    const Extent e{K, B, L};
    const Input mu = input(logits, Dtype::f32, L), logvar = input(other, Dtype::f32, L);
    const Normal eps = noise<Normal>(Input::Kind::normal);
    const Output z = output(out, Dtype::f32, L, B * L);
    const std::vector<int> lanes{2, 4, 8, 16};
    add("reparameterize, K 50, L 50", (K + 2) * B * L * 4, lanes,
        [=] { k.reparameterize(e, mu, logvar, eps, z); });
    add("reparameterize backward, K 50, L 50", (K + 3) * B * L * 4, lanes, [=, this] {
      k.reparameterize_backward(e, input(out, Dtype::f32, L, B * L), logvar, eps,
                                output(second, Dtype::f32, L), output(logits, Dtype::f32, L));
    });
    const Extent images{1, elements / D, D};
    Gathered probability{input(pixels, Dtype::u8, D)};
    for (const Dtype d : {Dtype::boolean, Dtype::f32})
      add(d == Dtype::boolean ? "binarize u8 to bool" : "binarize u8 to f32",
          elements * (1 + size_of(d)), {8, 16, 32, 256}, [=, this] {
            k.binarize(images, probability, noise<Uniform>(Input::Kind::uniform), output(out, d, D),
                       row_sums());
          });
  }

  void rest() {
    const Kernels& k = cuda::kernels;
    const int64_t rows = 131072;
    Input beta;
    beta.value = 1;
    const Sums a{Dtype::f32, sums}, b{Dtype::f32, static_cast<float*>(sums) + rows};
    auto* result = static_cast<float*>(scalar);
    for (const int64_t B : {int64_t{100}, int64_t{4096}, rows})
      add("elbo totals of " + std::to_string(B) + " rows", 2 * B * 4, {}, [=] {
        k.elbo({1, B, 784}, a, b, beta, true, {Dtype::f32, result + 1}, {Dtype::f32, result + 2},
               {Dtype::f32, result + 3});
      });
    PerRow factor;
    factor.value = 3;
    add("scale", 2 * elements * 4, {}, [=, this] {
      k.scale_unless_one({1, elements / 784, 784}, factor, input(out, Dtype::f32, 784),
                         output(out, Dtype::f32, 784));
    });
  }
};

void run(bool once) {
  check(cudaMalloc(reinterpret_cast<void**>(&workspace), kWorkspace));
  Bench bench(once ? int64_t{784} * 32768 : int64_t{784} * 131072 * 2);
  Milliseconds milliseconds;
  if (once) {
    for (const Kernel& kernel : bench.kernels) kernel.call();
    check(cudaDeviceSynchronize());
    for (const Kernel& kernel : bench.kernels) std::printf("%s\n", kernel.name.c_str());
    return;
  }
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  const size_t size = bench.elements * 4;
  const double memcpy_ms = milliseconds(
      [&] { check(cudaMemcpyAsync(bench.out, bench.logits, size, cudaMemcpyDeviceToDevice)); });
  const double vector_ms = milliseconds([&] {
    copy_vectors<<<static_cast<unsigned>(size / 16 / 256), 256>>>(
        static_cast<const uint4*>(bench.logits), static_cast<uint4*>(bench.out), size / 16);
  });
  const double copy = 2 * size / std::min(memcpy_ms, vector_ms);
  std::printf("%s, %d processors; copies of %zu MiB: cudaMemcpy %.0f, vectors %.0f GB/s\n",
              device.name, device.multiProcessorCount, size >> 20, 2e-6 * size / memcpy_ms,
              2e-6 * size / vector_ms);
  for (const Kernel& kernel : bench.kernels) {
    tried_lanes = taken_lanes = 0;
    const double usual = milliseconds(kernel.call);
    const int usual_lanes = taken_lanes;
    std::printf("%-42s *%d: %.4f ms %.0f%%", kernel.name.c_str(), usual_lanes, usual,
                100 * kernel.bytes / usual / copy);
    for (const int lanes : kernel.lanes) {
      if (lanes == usual_lanes) continue;
      tried_lanes = lanes;
      std::printf("  %d: %.0f%%", lanes, 100 * kernel.bytes / milliseconds(kernel.call) / copy);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace fastvae::cuda

int main(int argc, char** argv) {
  fastvae::cuda::run(argc > 1 && std::strcmp(argv[1], "--once") == 0);
}
